"""A served instance for the workflow tests: the real processes on a port and a data directory of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.postgres.databases import own_database

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    port: int
    data_dir: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def get(self, path: str, **params: Any) -> Any:
        response = httpx.get(self.url + path, params=params, timeout=60, trust_env=False)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, trust_env=False)

    def tree(self) -> list[psutil.Process]:
        """The server's main process and everything it started, run processes in their own sessions included."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def wait_for(self, path: str, field: str, values: set[str], seconds: float = 180) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = self.get(path)
            if answer[field] in values:
                return answer
            time.sleep(0.2)
        raise AssertionError(f"{path} stayed at {answer}; log:\n{self.log.read_text()[-4000:]}")

    def wait_for_step(self, run_id: int, step: int, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            run = self.get(f"/api/training/runs/{run_id}")
            assert run["status"] not in {"completed", "error"}, run
            if (run["current_step"] or 0) >= step:
                return
            time.sleep(0.2)
        raise AssertionError(f"run {run_id} did not reach step {step}; log:\n{self.log.read_text()[-4000:]}")

    def interrupt(self, seconds: float = 30) -> int:
        """Ctrl+C; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=seconds)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(data_dir: Path, **environment: str) -> Iterator[Served]:
    data_dir.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), data_dir / "serve.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "serve", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "QWEN3VL_DATA_DIR": str(data_dir), **own_database(data_dir), **environment},
            start_new_session=True,
        )
    server = Served(process, port, data_dir, log)
    try:
        wait_until_healthy(server)
        yield server
    finally:
        end(server)


def wait_until_healthy(server: Served, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if httpx.get(server.url + "/api/system/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the server did not start:\n{server.log.read_text()}")
        time.sleep(0.1)


def end(server: Served) -> None:
    if server.process.poll() is not None:
        return
    family = server.tree()
    try:
        server.interrupt()
    except subprocess.TimeoutExpired:
        for member in family:
            if member.is_running():
                member.kill()
