"""A model server of the web process over the stub, its starts counted, and nothing left behind."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from ftproject.engine.configs import GenerationParams
from inference_app.chat_format import ChatAnswer, openai_messages
from inference_app.model_server import ModelServer
from inference_app.server_process import ServerSpec

STUB = Path(__file__).with_name("stub_server.py")
GREEDY = GenerationParams(do_sample=False, max_new_tokens=8)


class Stub:
    """Starts stub servers and remembers their processes."""

    def __init__(self, starts: Path) -> None:
        self.starts = starts
        self.flags: list[str] = []

    def command(self, spec: ServerSpec, socket: Path) -> list[str]:
        given = ["--socket", str(socket), "--model-name", spec.model_name, "--starts", str(self.starts)]
        given += ["--heard", str(self.starts.with_name("heard"))]
        return [sys.executable, str(STUB), *given, *self.flags]

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.starts.read_text().split()] if self.starts.exists() else []

    @property
    def heard(self) -> list[str]:
        """The last words of every chat request, as they came."""
        path = self.starts.with_name("heard")
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(tmp_path / "starts")


@pytest.fixture
def server(stub: Stub, data_dir: Path, transactional_db: None) -> Iterator[ModelServer]:
    made = ModelServer(command=stub.command)
    yield made
    made.close()


@pytest.fixture
def spec() -> ServerSpec:
    return ServerSpec(model_name="tiny-qwen3-vl", model_path="/models/tiny")


def say(server: ModelServer, spec: ServerSpec, text: str, **parts: Any) -> ChatAnswer:
    """One answer to a prompt; the stub gives back what it was sent."""
    return server.chat(spec, openai_messages(text, []), GREEDY, **parts)


def heard(answer: ChatAnswer) -> dict[str, Any]:
    """What the stub was sent, and its process id."""
    told: dict[str, Any] = json.loads(answer.text)
    return told


def in_thread_of_its_own(work: Callable[[], Any]) -> Any:
    """`work`, with the thread's database connection closed after it."""
    try:
        return work()
    finally:
        connection.close()
