"""A server process for tests, and a model of no size for the routes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ftproject.engine.backends.base import EngineError, Generation
from ftproject.engine.configs import GenerationParams
from ftproject.engine.conversations import ResolvedConversation
from tests.engine.support import TINY

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Instant:
    """A loaded model that answers at once, or when `may_answer` is set, with what it was asked."""

    model_name: str = "tiny-qwen3-vl"
    device: str = "cpu"
    may_answer: threading.Event = field(default_factory=threading.Event)
    answering: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    seen: list[tuple[ResolvedConversation, GenerationParams, Path | None]] = field(default_factory=list)
    loaded: list[Path] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def generate(
        self,
        conversations: Sequence[ResolvedConversation],
        params: GenerationParams,
        *,
        adapter: Path | None,
        on_token: Callable[[str], None] | None = None,
    ) -> list[Generation]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.answering.set()
        try:
            while not self.may_answer.wait(0.01):
                if on_token:
                    on_token("x")
        finally:
            self.at_once -= 1
        if self.failure:
            raise self.failure
        self.seen.append((conversations[0], params, adapter))
        sizes = ",".join(str(path.stat().st_size) for path in conversations[0].image_paths)
        text = f"{conversations[0].conversation.prompt}|{sizes}"
        return [Generation(text, 3, 2, "stop", 1.5)]

    def preload(self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None) -> None:
        """Nothing to prepare."""

    def ensure_adapter(self, path: Path) -> None:
        if path.name == "broken":
            raise EngineError("adapter_incomplete", "broken lacks its weights")
        self.loaded.append(path)

    def memory_mb(self) -> int:
        return 12


@dataclass
class RealServer:
    """A server process and its client."""

    process: subprocess.Popen[bytes]
    client: httpx.Client
    socket: Path
    log: Path

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = self.client.get("/status").json()
        return told

    def wait_for(self, holds: Callable[[dict[str, Any]], Any], seconds: float = 90) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if holds(told := self.status()):
                    return told
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def chat(self, text: str, model: str = "tiny-qwen3-vl", **fields: Any) -> httpx.Response:
        body = {"model": model, "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": text}]}
        return self.client.post("/v1/chat/completions", json=body | fields, timeout=60)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self.client.close()


def start_server(folder: Path, *flags: str, images: Path | None = None, adapters: Path | None = None) -> RealServer:
    folder.mkdir(parents=True, exist_ok=True)
    socket, log = folder / "s.sock", folder / "log"
    given = {"--socket": socket, "--model": TINY, "--model-name": "tiny-qwen3-vl", "--parent": os.getpid()}
    given |= {"--images": images or folder, "--adapters": adapters or folder}
    arguments = [f"{name}={value}" for name, value in given.items()]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "ftproject.engine.server", *arguments, *flags],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=ROOT,
        )
    transport = httpx.HTTPTransport(uds=str(socket))
    return RealServer(process, httpx.Client(transport=transport, base_url="http://model", timeout=10), socket, log)


@pytest.fixture
def fake_server(tmp_path: Path) -> Iterator[RealServer]:
    """The real process with the fake backend: up within a second."""
    server = start_server(tmp_path, "--backend=fake")
    yield server
    server.end()
