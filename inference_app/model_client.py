"""Speaks OpenAI's format with the model server over its unix socket; the only connection of this app."""

import contextlib
import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings

from ftproject.core.departure import Departure
from ftproject.engine.remote import sent_lines

STATUS_SECONDS = 2.0
# Less than the 5 s after which uvicorn closes an idle connection: a request that meets the closing would fail.
KEPT_SECONDS = 2.0
CLIENT_GONE = 499
# Loading an adapter waits for the base: fetching a 20 GB model from the hub is part of its first load.
LOAD_SECONDS = 1800.0
# The server itself ends an answer that takes longer than QWEN3VL_INFERENCE_TIMEOUT_SECONDS, and says so.
PATIENCE_SECONDS = 30.0
# Cancelling waits for the server's answer to it, which must not be on the event loop that noticed the departure.
cancellers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="model-cancel")


class ServerDiedError(Exception):
    """The server ended, or does not answer as it should."""


class ServerRefusedError(Exception):
    """The server said no, with a code and a message for the user."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(f"{status} {code}: {message}")


class ModelClient:
    """Thread-safe, as httpx.Client is."""

    def __init__(self, socket: Path) -> None:
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEPT_SECONDS)
        transport = httpx.HTTPTransport(uds=str(socket), limits=limits)
        self.http = httpx.Client(transport=transport, base_url="http://model-server", timeout=STATUS_SECONDS)

    def status(self) -> dict[str, Any] | None:
        """What the server says of itself; None while it does not answer."""
        try:
            told = self.http.get("/status").raise_for_status().json()
        except (httpx.HTTPError, ValueError, RuntimeError):  # the last one: it was closed a moment ago
            return None
        return told if isinstance(told, dict) else None

    def load_adapter(self, name: str, path: Path) -> None:
        """Raises ServerDiedError and ServerRefusedError."""
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)}, LOAD_SECONDS)

    def chat(self, body: dict[str, Any], departure: Departure | None = None) -> dict[str, Any]:
        """A chat completion; raises ServerDiedError, and ServerRefusedError (status 499 when `departure` ended it)."""
        with self._asked(departure) as headers:
            response = self._post("/v1/chat/completions", body, generation_seconds(), headers)
        try:
            answer: dict[str, Any] = response.json()
        except ValueError as error:
            raise ServerDiedError("its answer is not JSON") from error
        return answer

    def stream_chat(self, body: dict[str, Any], departure: Departure | None = None) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed completion as they come; raises as `chat` does, before the first one and later."""
        timeout = httpx.Timeout(generation_seconds(), connect=STATUS_SECONDS)
        route, ended = "/v1/chat/completions", False
        with self._asked(departure) as headers:
            try:
                with self.http.stream(
                    "POST", route, json=body | {"stream": True}, headers=headers, timeout=timeout
                ) as response:
                    if response.status_code != httpx.codes.OK:
                        response.read()
                        raise read_refusal(response)
                    for chunk in read_events(sent_lines(response)):
                        if "error" in chunk:
                            raise refusal_in(chunk, httpx.codes.SERVICE_UNAVAILABLE)
                        yield chunk
                        ended = ended or any(choice.get("finish_reason") for choice in chunk.get("choices", []))
            except httpx.HTTPError as error:
                raise ServerDiedError(f"{route}: {type(error).__name__}: {error}") from error
        if not ended:
            raise ServerDiedError("its stream broke off")

    @contextlib.contextmanager
    def _asked(self, departure: Departure | None) -> Iterator[dict[str, str]]:
        """A request id under which the server gives the answer up when the client leaves, or we stop reading."""
        request_id = uuid.uuid4().hex
        if departure is not None:
            if departure.happened:
                raise ServerRefusedError(CLIENT_GONE, "client_gone", "the answer was given up")
            departure.when_happened(lambda: cancellers.submit(self.cancel, request_id))
        yield {"X-Request-ID": request_id}

    def cancel(self, request_id: str) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self.http.post("/cancel", json={"request_id": request_id})

    def _post(
        self, route: str, body: dict[str, Any], seconds: float, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        timeout = httpx.Timeout(seconds, connect=STATUS_SECONDS)
        try:
            response = self.http.post(route, json=body, timeout=timeout, headers=headers)
        except httpx.HTTPError as error:
            raise ServerDiedError(f"{route}: {type(error).__name__}: {error}") from error
        if response.status_code != httpx.codes.OK:
            raise read_refusal(response)
        return response

    def close(self) -> None:
        self.http.close()


def generation_seconds() -> float:
    return float(settings.INFERENCE_TIMEOUT_SECONDS) + PATIENCE_SECONDS


def read_events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON of server-sent events up to the closing [DONE]; raises ServerDiedError for anything else."""
    for line in lines:
        if not line:
            continue
        data = line.removeprefix("data: ")
        if data == "[DONE]":
            return
        try:
            yield json.loads(data)
        except ValueError as error:
            raise ServerDiedError("its stream is not JSON") from error


def read_refusal(response: httpx.Response) -> ServerRefusedError | ServerDiedError:
    if response.status_code == CLIENT_GONE:
        return ServerRefusedError(CLIENT_GONE, "client_gone", "the answer was given up")
    try:
        return refusal_in(response.json(), response.status_code)
    except ValueError:
        return ServerDiedError(f"it answered {response.status_code} without saying why")


def refusal_in(body: Any, status: int) -> ServerRefusedError | ServerDiedError:
    try:
        error = body["error"]
        return ServerRefusedError(status, str(error["code"]), str(error["message"]))
    except (KeyError, TypeError):
        return ServerDiedError(f"it answered {status} without saying why")
