"""One request's turn on the model server: its answers, and the time it spent on loading."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.core.events import publish
from ftproject.engine.configs import GenerationParams
from inference_app.chat_format import ChatAnswer, openai_params, read_answer
from inference_app.server_process import ServerProcess


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter as the model server knows it: by name, loaded from its folder."""

    name: str
    path: Path


class Session:
    """The turn of one request: several answers from the same loaded base."""

    def __init__(self, child: ServerProcess) -> None:
        self.child = child
        self.load_ms = 0.0

    def prepare(self, adapter: ServedAdapter | None) -> None:
        """Waits for the base and the adapter, and counts the time that this request spent on it."""
        started = time.monotonic()
        needed = self.child.since is None or (adapter is not None and adapter.name not in self.child.adapters)
        self.child.wait_until_loaded()
        if adapter is not None:
            self.child.load_adapter(adapter.name, adapter.path)
        if needed:
            self.load_ms += round((time.monotonic() - started) * 1000, 1)
            publish_status(loaded=True, adapter=adapter)

    def chat(
        self, messages: list[dict[str, Any]], params: GenerationParams, adapter: ServedAdapter | None = None
    ) -> ChatAnswer:
        self.prepare(adapter)
        model = adapter.name if adapter else self.child.spec.model_name
        return read_answer(self.child.client.chat({"model": model, "messages": messages, **openai_params(params)}))


def publish_status(*, loaded: bool, adapter: ServedAdapter | None = None) -> None:
    mode = None if not loaded else "finetuned" if adapter else "base"
    publish("model_status", {"loaded": loaded, "mode": mode, "adapter": adapter.name if adapter else None})
