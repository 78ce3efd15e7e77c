"""Names a process so that neither a reused pid, nor a reboot, nor a clock that is set can make it another one."""

import os
import socket
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
START_TICKS = 19  # of the words behind the command's name in /proc/<pid>/stat


def this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{birth_of(os.getpid())}"


def process_lives(name: str) -> bool:
    """False only when the process is surely gone: it was on this host and none has its pid and its birth."""
    try:
        host, pid, birth = name.rsplit(":", 2)
        return host != socket.gethostname() or birth_of(int(pid)) == birth
    except psutil.NoSuchProcess:
        return False
    except ValueError:
        return True


def birth_of(pid: int) -> str:
    """When a process began, counted from the boot. Raises psutil.NoSuchProcess.

    psutil adds the boot time, which follows the wall clock: after a step of it by one second, the name that a process
    had written before was nobody's, and its run counted as dead.
    """
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{BOOT_ID.read_text()[:6]}.{words[START_TICKS]}"
    except (FileNotFoundError, ProcessLookupError):
        # Not Linux, or no such process; psutil knows which.
        return f"{psutil.Process(pid).create_time():.2f}"
