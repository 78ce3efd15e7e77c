"""Answers through a server of somebody else's (vLLM by URL) with the same sessions as our own model server."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ftproject.core.departure import ClientGoneError, Departure
from ftproject.core.errors import (
    BusyError,
    ConflictError,
    InvalidInputError,
    ProductError,
    UnavailableError,
    UpstreamError,
)
from ftproject.engine.canary import AdapterCanary
from ftproject.engine.configs import GenerationParams
from ftproject.engine.remote import (
    RemoteError,
    RemoteRefusalError,
    RemoteServer,
    RemoteSettings,
    openai_settings,
    with_embedded_pictures,
)
from inference_app.chat_format import ChatAnswer, ChatFormatError, read_answer
from inference_app.server_process import ServerSpec
from inference_app.session import ServedAdapter
from training_app.remote_settings import remote_settings

MAX_REQUESTS = 32
HINTS = {
    "inference_server_unreachable": "Look whether it runs and whether QWEN3VL_INFERENCE_URL is right.",
    "inference_server_failed": "Look into that server's log.",
    "inference_server_denied": "Set QWEN3VL_INFERENCE_KEY to that server's API key and start again.",
    "inference_server_other_model": "Leave model_name out, or serve that model.",
    "adapter_ignored": "No answer of it is called fine-tuned meanwhile.",
    "adapter_not_served": "Serve it, or set QWEN3VL_INFERENCE_ADAPTERS_DIR to let it be loaded by name.",
}
STATUSES: dict[str, type[ProductError]] = {
    "inference_server_unreachable": UnavailableError,
    "generation_timeout": UnavailableError,
    "inference_server_other_model": ConflictError,
    "adapter_not_served": ConflictError,
}


class RemoteModelServer:
    """Sessions on the server of QWEN3VL_INFERENCE_URL; no GPU of ours is taken."""

    def __init__(self, server: RemoteServer) -> None:
        self.server = server
        self.canary = AdapterCanary(server)
        self.requests = threading.BoundedSemaphore(MAX_REQUESTS)

    @contextmanager
    def session(
        self, spec: ServerSpec, *, wait_seconds: float = 0.0, departure: Departure | None = None
    ) -> "Iterator[RemoteSession]":
        """One request's use of the server; raises a ProductError for all that can go wrong."""
        if not self.requests.acquire(blocking=False):
            raise BusyError(f"{MAX_REQUESTS} requests are being answered already.", headers={"Retry-After": "5"})
        try:
            with failures_told():
                yield RemoteSession(self, spec, departure)
        finally:
            self.requests.release()

    def status(self) -> dict[str, Any]:
        """What `GET /api/system/model-status` shows beside the fields of our own server."""
        host = self.server.settings.host
        try:
            models = self.server.base_models()
        except (RemoteError, RemoteRefusalError) as error:
            return {
                "loaded": False,
                "device": host,
                "remote": {"host": host, "reachable": False, "reason": error.message},
            }
        remote = {"host": host, "reachable": True, "reason": None}
        return {"loaded": True, "model_name": models[0] if models else None, "device": host, "remote": remote}


class RemoteSession:
    """Several answers of one request; the same methods as `session.Session`."""

    def __init__(self, remote: RemoteModelServer, spec: ServerSpec, departure: Departure | None) -> None:
        self.remote, self.spec, self.departure = remote, spec, departure
        self.load_ms = 0.0

    def prepare(self, adapter: ServedAdapter | None) -> None:
        """Has the adapter registered and its effect shown, and counts the time of it."""
        began = time.monotonic()
        self.named({}, adapter)
        self.load_ms += round((time.monotonic() - began) * 1000, 1)

    def named(self, body: dict[str, Any], adapter: ServedAdapter | None) -> dict[str, Any]:
        base = self.remote.server.base_of(self.spec.model_name)
        if adapter is None:
            return body | {"model": base}
        name = self.remote.server.serve_adapter(adapter.name, adapter.sha256)
        self.remote.canary.require_effect(base, name)
        return body | {"model": name}

    def chat(
        self, messages: list[dict[str, Any]], params: GenerationParams, adapter: ServedAdapter | None = None
    ) -> ChatAnswer:
        """The whole answer to messages in OpenAI's format."""
        return read_answer(self.complete({"messages": messages, **openai_settings(params)}, adapter))

    def complete(self, body: dict[str, Any], adapter: ServedAdapter | None = None) -> dict[str, Any]:
        """A chat completion put together from a stream: only a stream can be given up when our client leaves."""
        began = time.monotonic()
        gathered = GatheredAnswer()
        for chunk in self.stream(body, adapter):
            gathered.add(chunk, (time.monotonic() - began) * 1000)
        return gathered.completion((time.monotonic() - began) * 1000, self.load_ms)

    def stream(self, body: dict[str, Any], adapter: ServedAdapter | None = None) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed completion, the usage in the last one."""
        asked = self.named(body, adapter) | {"messages": with_embedded_pictures(body["messages"])}
        departure = self.departure
        if departure is None:
            yield from self.remote.server.stream(asked)
        else:
            yield from self.remote.server.stream(asked, lambda: departure.happened, departure.when_happened)


class GatheredAnswer:
    """A streamed answer as a whole one, with times that we measured ourselves."""

    def __init__(self) -> None:
        self.head: dict[str, Any] = {}
        self.text = ""
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.first_ms: float | None = None

    def add(self, chunk: dict[str, Any], at_ms: float) -> None:
        self.head = self.head or {name: chunk.get(name) for name in ("id", "created", "model")}
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or []:
            piece = (choice.get("delta") or {}).get("content") or ""
            self.first_ms = at_ms if piece and self.first_ms is None else self.first_ms
            self.text += piece
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def completion(self, total_ms: float, load_ms: float) -> dict[str, Any]:
        if self.usage is None:
            raise RemoteError("inference_server_failed", "the inference server does not count tokens")
        message = {"role": "assistant", "content": self.text}
        first = total_ms if self.first_ms is None else self.first_ms
        return self.head | {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
            "usage": self.usage,
            "timings": {"load_ms": load_ms, "prefill_ms": round(first, 1), "generation_ms": round(total_ms, 1)},
        }


@contextmanager
def failures_told() -> Iterator[None]:
    """Turns what the other server did into our errors."""
    try:
        yield
    except RemoteRefusalError as error:
        raise InvalidInputError(error.message, code=error.code, hint="That server's own words.") from error
    except RemoteError as error:
        raise as_product_error(error) from error
    except (ChatFormatError, OSError) as error:
        failed = RemoteError("inference_server_failed", f"the inference server gave no usable answer ({error})")
        raise as_product_error(failed) from error


def as_product_error(error: RemoteError) -> ProductError:
    detail = error.message[:1].upper() + error.message[1:] + "."
    if error.code == "client_gone":
        return ClientGoneError()
    if error.code == "inference_server_busy":
        return BusyError(detail, code=error.code, hint="Try again in a moment.", headers={"Retry-After": "5"})
    kind = STATUSES.get(error.code, UpstreamError)
    headers = {"Retry-After": "30"} if kind is UnavailableError else {}
    return kind(detail, code=error.code, hint=HINTS.get(error.code, ""), headers=headers)


@lru_cache(maxsize=4)
def remote_server_at(where: RemoteSettings) -> RemoteModelServer:
    return RemoteModelServer(RemoteServer(where))


def remote_server() -> RemoteModelServer | None:
    """The one remote server of this process, or None when our own answers."""
    where = remote_settings()
    return remote_server_at(where) if where else None


def remote_spec(remote: RemoteModelServer, model_name: str | None) -> ServerSpec:
    """The base that is asked: the named one, else the one that the server serves."""
    with failures_told():
        return replace(REMOTE_SPEC, model_name=model_name or remote.server.base_of(None))


REMOTE_SPEC = ServerSpec(model_name="", model_path="", backend="openai")
