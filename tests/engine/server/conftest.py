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

from ftproject.engine.answering import ChatAnswer, ChatRequest
from ftproject.engine.backends.base import EngineError
from ftproject.engine.decoding import CancelledGenerationError
from tests.engine.support import TINY

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Instant:
    """A loaded model that answers at once, or when `may_answer` is set, with what it was asked, letter by letter."""

    model_name: str = "tiny-qwen3-vl"
    device: str = "cpu"
    may_answer: threading.Event = field(default_factory=threading.Event)
    answering: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    fails_after: str | None = None
    seen: list[ChatRequest] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    loaded: list[Path] = field(default_factory=list)

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        self.batches.append(len(requests))
        self.answering.set()
        while not self.may_answer.wait(0.01) and not all(cancelled(item) for item in requests):
            pass
        if self.failure:
            raise self.failure
        return [self.answer_one(item) for item in requests]

    def answer_one(self, request: ChatRequest) -> ChatAnswer:
        if cancelled(request):
            return ChatAnswer(error=CancelledGenerationError())
        self.seen.append(request)
        last = request.chat.turns[-1]
        words = "".join(part for part in last.parts if isinstance(part, str))
        text = f"{words}|{','.join(str(path.stat().st_size) for path in request.chat.image_paths)}"
        for letter in text:
            if letter == self.fails_after:
                time.sleep(0.2)  # the pieces before are on their way by then
                return ChatAnswer(error=EngineError("out_of_memory", "the device has not enough free memory"))
            if request.decoding.on_text:
                request.decoding.on_text(letter)
        return ChatAnswer(text, 3, 2, "stop", 0.5, 1.5)

    def ensure_adapter(self, path: Path) -> None:
        if path.name == "broken":
            raise EngineError("adapter_incomplete", "broken lacks its weights")
        self.loaded.append(path)

    def memory_mb(self) -> int:
        return 12


def cancelled(request: ChatRequest) -> bool:
    asked = request.decoding.is_cancelled
    return asked is not None and asked()


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
