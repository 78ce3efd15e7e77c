"""One request's turn on the model server: its answers, and the time it spent on loading."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.core.departure import Departure
from ftproject.core.events import publish
from ftproject.engine.configs import GenerationParams
from ftproject.engine.remote import openai_settings
from inference_app.chat_format import ChatAnswer, read_answer
from inference_app.server_process import ServerProcess


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter as the model server knows it: by name, loaded from its folder."""

    name: str
    path: Path
    sha256: str = ""


class Session:
    """One request's use of the model server: several answers from the same loaded base, given up when it leaves."""

    def __init__(self, child: ServerProcess, departure: Departure | None = None) -> None:
        self.child = child
        self.departure = departure
        self.load_ms = 0.0

    def prepare(self, adapter: ServedAdapter | None) -> None:
        """Waits for the base and the adapter, and counts the time that this request spent on it."""
        started = time.monotonic()
        needed = self.child.since is None or (adapter is not None and adapter.name not in self.child.adapters)
        news = self.child.wait_until_loaded()
        if adapter is not None:
            news = self.child.load_adapter(adapter.name, adapter.path) or news
        if needed:
            self.load_ms += round((time.monotonic() - started) * 1000, 1)
        if news:
            publish_status(loaded=True, adapter=adapter)

    def chat(
        self, messages: list[dict[str, Any]], params: GenerationParams, adapter: ServedAdapter | None = None
    ) -> ChatAnswer:
        """The whole answer to messages in OpenAI's format."""
        return read_answer(self.complete({"messages": messages, **openai_settings(params)}, adapter))

    def complete(self, body: dict[str, Any], adapter: ServedAdapter | None = None) -> dict[str, Any]:
        """A chat completion in OpenAI's format; the model's name is put in here."""
        self.prepare(adapter)
        return self.child.client.chat(self.named(body, adapter), self.departure)

    def stream(self, body: dict[str, Any], adapter: ServedAdapter | None = None) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed completion."""
        self.prepare(adapter)
        yield from self.child.client.stream_chat(self.named(body, adapter), self.departure)

    def named(self, body: dict[str, Any], adapter: ServedAdapter | None) -> dict[str, Any]:
        return body | {"model": adapter.name if adapter else self.child.spec.model_name}


def publish_status(*, loaded: bool, adapter: ServedAdapter | None = None) -> None:
    mode = None if not loaded else "finetuned" if adapter else "base"
    publish("model_status", {"loaded": loaded, "mode": mode, "adapter": adapter.name if adapter else None})
