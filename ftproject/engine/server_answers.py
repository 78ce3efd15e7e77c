"""Writes the model server's answers in OpenAI's shapes: a chat completion, or the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from ftproject.engine.answering import ChatAnswer
from ftproject.engine.backends.base import EngineError
from ftproject.engine.images import ImageError

DONE = b"data: [DONE]\n\n"


class AnswerWriter:
    """One answer's shapes, all with the same id."""

    def __init__(self, model: str, load_ms: float) -> None:
        self.load_ms = load_ms
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def completion(self, answer: ChatAnswer) -> dict[str, Any]:
        """The whole answer, with our `timings` in milliseconds beside it."""
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        return self._head | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_of(answer),
            "timings": self.timings_of(answer),
        }

    def first_chunk(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def text_chunk(self, piece: str) -> bytes:
        return self._chunk({"content": piece})

    def last_chunk(self, answer: ChatAnswer) -> bytes:
        return self._chunk({}, answer.finish_reason, {"timings": self.timings_of(answer)})

    def usage_chunk(self, answer: ChatAnswer) -> bytes:
        return event(self._head | {"object": "chat.completion.chunk", "choices": [], "usage": usage_of(answer)})

    def _chunk(
        self, delta: dict[str, str], finish_reason: str | None = None, extra: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return event(self._head | {"object": "chat.completion.chunk", "choices": [choice]} | (extra or {}))

    def timings_of(self, answer: ChatAnswer) -> dict[str, float]:
        return {
            "load_ms": self.load_ms,
            "prefill_ms": round(answer.prefill_ms, 1),
            "generation_ms": round(answer.generation_ms, 1),
        }


def usage_of(answer: ChatAnswer) -> dict[str, int]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event; in ASCII, since many clients' lines also end at U+2028 and U+0085."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def error_body(error: EngineError | ImageError, status: int) -> dict[str, Any]:
    """OpenAI's error shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    param = getattr(error, "param", None)
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}
