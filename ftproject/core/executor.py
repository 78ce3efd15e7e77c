"""The executor port: starts, watches and stops a run process. The local child process is the default."""

import codecs
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from django.conf import settings

from ftproject.core.storage import log_path, run_dir

LOG_BYTES = 64_000


class RunHandle(Protocol):
    def poll(self) -> int | None:
        """The exit code (negative: the signal that ended it), or None while it runs."""

    def terminate(self) -> None:
        """Asks it to save and leave."""

    def kill(self) -> None:
        """Ends it and everything it started."""

    def close(self) -> None: ...


class Executor(Protocol):
    def submit(self, kind: str, run_id: int, claim: str) -> RunHandle: ...

    def logs(self, kind: str, run_id: int, tail: int) -> str: ...

    def log_since(self, kind: str, run_id: int, offset: int) -> "LogPart":
        """What was written after the first `offset` bytes, at most LOG_BYTES of it."""


@dataclass(frozen=True)
class LogPart:
    """Text of a log, and how many bytes of the log stand before what comes next."""

    text: str
    offset: int


class LocalHandle:
    """A child in its own session; it dies with us by PDEATHSIG and by the end of its stdin (see `ftproject.worker`)."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.process = process
        self.log = log

    def poll(self) -> int | None:
        return self.process.poll()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stdin:
            self.process.stdin.close()
        self.log.close()


class LocalExecutor:
    def __init__(self, *, last: str = "") -> None:
        # Name of a job after whose end the processes take up no other; empty: whatever suits them.
        self.last = last

    def submit(self, kind: str, run_id: int, claim: str) -> LocalHandle:
        log = log_path(kind, run_id).open("ab")
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ftproject.worker",
                kind,
                str(run_id),
                claim,
                "--parent",
                str(os.getpid()),
                *(["--last", self.last] if self.last else []),
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Unsloth writes unsloth_compiled_cache into the working directory.
            cwd=run_dir(kind, run_id),
            env=run_environment(os.environ),
        )
        return LocalHandle(process, log)

    def logs(self, kind: str, run_id: int, tail: int) -> str:
        return tail_of(log_path(kind, run_id), tail)

    def log_since(self, kind: str, run_id: int, offset: int) -> LogPart:
        return part_of(log_path(kind, run_id), offset)


def run_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run process: ours, importable from any directory, one CPU thread unless told otherwise.

    Two OpenMP threads on a busy two-core machine were 8-10 times slower than one (25 pre-training steps, measured).
    """
    threads = base.get("QWEN3VL_CPU_THREADS", "1")
    paths = [str(settings.BASE_DIR), *filter(None, [base.get("PYTHONPATH")])]
    # A run process is no cluster: with its name Django-Q would warn about the cluster's settings into the run's log.
    base = {name: value for name, value in base.items() if name != "Q_CLUSTER_NAME"}
    return {
        **base,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "DJANGO_SETTINGS_MODULE": base.get("DJANGO_SETTINGS_MODULE", "ftproject.settings"),
        "QWEN3VL_DATA_DIR": str(settings.DATA_DIR),
        "OMP_NUM_THREADS": base.get("OMP_NUM_THREADS", threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def tail_of(path: Path, lines: int, max_bytes: int = LOG_BYTES) -> str:
    """The last lines of a text file, reading only its end."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - max_bytes))
            text = stream.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def part_of(path: Path, offset: int, max_bytes: int = LOG_BYTES) -> LogPart:
    """The bytes after `offset` as text; a character that is only half there is left for the next time."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(min(offset, size))
            data = stream.read(max_bytes)
    except FileNotFoundError:
        return LogPart("", 0)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return LogPart(text, min(offset, size) + len(data) - len(decoder.getstate()[0]))


def get_executor(*, last: str = "") -> Executor:
    return LocalExecutor(last=last)
