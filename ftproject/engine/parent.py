"""Ends a child process when its parent is gone, however that happened; run processes and the model server use it."""

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1
PARENT_GONE = 3  # exit code


def die_with_parent(parent: int | None) -> None:
    """Two ways, as each misses a case: PDEATHSIG is Linux only, the end of stdin needs a thread that gets its turn.

    The parent starts this process with a pipe as stdin that it holds open, and from a thread that lives as long as
    itself: the kernel sends PDEATHSIG when the forking thread ends, not the process. `parent` null: no parent to
    follow.
    """
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before prctl
        os._exit(PARENT_GONE)
    threading.Thread(target=exit_at_end_of_stdin, name="parent-watch", daemon=True).start()


def exit_at_end_of_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(PARENT_GONE)
