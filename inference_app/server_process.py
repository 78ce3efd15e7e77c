"""The model server as a child of this process: starts it, waits until it has loaded, ends it."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings

from ftproject.core.executor import run_environment, tail_of
from ftproject.core.storage import adapters_dir, data_path, images_dir, socket_path
from inference_app.model_client import LOAD_SECONDS, ModelClient, ServerDiedError, ServerRefusedError

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.05
LOG_MAX_BYTES = 10_000_000

# The kernel ends a child when the thread that forked it ends (PDEATHSIG), so that must not be a request's thread.
spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model-server-spawner")


@dataclass(frozen=True)
class ServerSpec:
    """Which base model a server holds, and how; a request for another one needs another server."""

    model_name: str
    model_path: str
    backend: str = "auto"
    load_in_4bit: bool | None = None


Command = Callable[[ServerSpec, Path], list[str]]


def server_command(spec: ServerSpec, socket: Path) -> list[str]:
    arguments = {
        "--socket": socket,
        "--model": spec.model_path,
        "--model-name": spec.model_name,
        "--images": images_dir(),
        "--adapters": adapters_dir(),
        "--backend": spec.backend,
        "--max-seq-length": settings.DEFAULT_MAX_SEQ_LENGTH,
        "--request-seconds": settings.INFERENCE_TIMEOUT_SECONDS,
        "--parent": os.getpid(),
    }
    given = [f"{name}={value}" for name, value in arguments.items() if value is not None]
    if spec.load_in_4bit is not None:
        given.append("--load-in-4bit" if spec.load_in_4bit else "--no-load-in-4bit")
    return [sys.executable, "-m", "ftproject.engine.server", *given]


def server_log() -> Path:
    return data_path("logs", "model-server.log")


class ServerProcess:
    def __init__(self, spec: ServerSpec, command: Command = server_command) -> None:
        self.spec = spec
        self.socket = socket_path()
        self.since: datetime | None = None
        self.failed = False  # it may still answer those it has, but gets no new request
        self.adapters: set[str] = set()
        self.loading = threading.Lock()
        self.last_status: dict[str, Any] = {}
        self.process = spawner.submit(self._spawn, command(spec, self.socket)).result()
        self.client = ModelClient(self.socket)
        logger.info("model server for %s started as process %s", spec.model_name, self.process.pid)

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        self.socket.unlink(missing_ok=True)
        with open_log() as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=scratch_dir(),
                env=run_environment(os.environ),
            )

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_loaded(self) -> bool:
        """True for the one caller that saw it come; raises ServerDiedError, and ServerRefusedError when it cannot."""
        if self.since is not None:
            return False
        with self.loading:
            return self._wait_until_loaded()

    def _wait_until_loaded(self) -> bool:
        waited, until = self.since is None, time.monotonic() + LOAD_SECONDS
        while self.since is None:
            if not self.is_alive:
                raise ServerDiedError(f"it ended with code {self.process.returncode} while loading")
            status = self.read_status()
            if status.get("error"):
                raise ServerRefusedError(503, **status["error"])
            if status.get("loaded"):
                self.since = datetime.now(UTC)
            elif time.monotonic() > until:
                raise ServerDiedError(f"the model was not loaded after {LOAD_SECONDS:.0f} s")
            else:
                time.sleep(POLL_SECONDS)
        return waited

    def read_status(self) -> dict[str, Any]:
        """What the server says of itself; its last words, or nothing, while it does not answer."""
        self.last_status = self.client.status() or self.last_status
        return self.last_status

    def load_adapter(self, name: str, path: Path) -> bool:
        """Loads an adapter once per server, True for who did; raises ServerDiedError and ServerRefusedError."""
        with self.loading:
            if name in self.adapters:
                return False
            self.client.load_adapter(name, path)
            self.adapters.add(name)
            return True

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM lets the request in flight end; after the grace time everything it started is killed."""
        if self.is_alive:
            self.process.terminate()
            try:
                self.process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                logger.warning("the model server did not leave within %.0f s: killed", grace_seconds)
        self.kill()
        self.client.close()
        self.socket.unlink(missing_ok=True)

    def kill(self) -> None:
        if self.is_alive:  # not once it was reaped: its number may be somebody else's by then
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()

    def last_words(self) -> str:
        return tail_of(server_log(), 20)


def open_log() -> Any:
    """The server's log, appended to; begun anew when it has grown large."""
    path = server_log()
    if path.exists() and path.stat().st_size > LOG_MAX_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def scratch_dir() -> Path:
    """The server's working directory: Unsloth writes unsloth_compiled_cache there."""
    path = data_path("run", "model-server", "x").parent
    path.mkdir(parents=True, exist_ok=True)
    return path
