"""A server that speaks OpenAI's chat format (vLLM, say) in the place of our own: its models, answers and adapters.

Pictures travel to it as data URIs, so it never fetches anything for us. Nothing here imports torch.
"""

from __future__ import annotations

import base64
import json
import mimetypes
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import httpx

from ftproject.engine.backends.base import EngineError
from ftproject.engine.hyperparameters import GenerationParams

CONNECT_SECONDS = 3.0
# Less than the 5 s after which uvicorn, vLLM's too, closes an idle connection: a request that meets it would fail.
KEPT_SECONDS = 2.0
LIST_SECONDS = 10.0
LOAD_SECONDS = 300.0
MODELS_SECONDS = 30.0
LARGEST_ANSWER_BYTES = 16 * 2**20
REMOTE_BACKEND = "openai"

Code = Literal[
    "inference_server_unreachable",
    "inference_server_failed",
    "inference_server_denied",
    "inference_server_busy",
    "inference_server_other_model",
    "adapter_not_served",
    "adapter_ignored",
    "generation_timeout",
    "client_gone",
]


class RemoteError(EngineError):
    """The inference server cannot answer; the message says what to look at, and never holds its key."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(code, message)


class RemoteRefusalError(EngineError):
    """The inference server refuses this request; the message is its own."""


@dataclass(frozen=True)
class RemoteSettings:
    """Where the server is; `adapters_dir` is our adapters' folder as it sees it, null: it loads none for us."""

    url: str
    key: str = ""
    adapters_dir: str | None = None
    seconds: float = 900.0

    @property
    def host(self) -> str:
        """What may be shown of the URL: no user, no password, no path."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


class RemoteServer:
    """Thread-safe, as httpx.Client is; the list of models is kept for half a minute."""

    def __init__(self, settings: RemoteSettings, transport: httpx.BaseTransport | None = None) -> None:
        self.settings = settings
        base = settings.url.rstrip("/")
        self.http = httpx.Client(
            base_url=base if base.endswith("/v1") else f"{base}/v1",
            headers={"Authorization": f"Bearer {settings.key}"} if settings.key else {},
            timeout=httpx.Timeout(settings.seconds, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEPT_SECONDS),
            follow_redirects=False,
            trust_env=False,
            transport=transport,
        )
        self._models: tuple[float, list[dict[str, Any]]] = (0.0, [])
        self.losses = 0  # how often it was away, or no longer knew a model: what it showed before counts no more

    def models(self, *, fresh: bool = False) -> list[dict[str, Any]]:
        """What it serves, as its /v1/models says; raises RemoteError."""
        seen_at, models = self._models
        if fresh or not models or time.monotonic() - seen_at > MODELS_SECONDS:
            body = self._json(self._send("GET", "/models", seconds=LIST_SECONDS))
            found = body.get("data") if isinstance(body, dict) else None
            if not isinstance(found, list) or not all(isinstance(item, dict) and item.get("id") for item in found):
                raise RemoteError("inference_server_failed", f"{self.settings.host} does not list its models")
            self._models = (time.monotonic(), found)
        return self._models[1]

    def base_models(self) -> list[str]:
        """The names of the models that are no adapters."""
        return [str(item["id"]) for item in self.models() if not item.get("parent")]

    def base_of(self, model_name: str | None) -> str:
        """Its name of a base model; null takes the one it serves. Raises RemoteError when it serves another."""
        bases = self.base_models()
        if not bases:
            raise RemoteError("inference_server_failed", f"{self.settings.host} serves no model")
        if model_name is None:
            return bases[0]
        for item in self.models():
            if not item.get("parent") and model_name in (item["id"], item.get("root")):
                return str(item["id"])
        message = f"{self.settings.host} serves {', '.join(bases)}, not {model_name}"
        raise RemoteError("inference_server_other_model", message)

    def is_listed(self, name: str) -> bool:
        return any(item["id"] == name for item in self.models())

    def load_adapter(self, name: str, path: str) -> None:
        """Registers an adapter by vLLM's route; raises RemoteError."""
        body = {"lora_name": name, "lora_path": path}
        try:
            self._send("POST", "/load_lora_adapter", body, seconds=LOAD_SECONDS)
        except RemoteRefusalError as error:
            self.models(fresh=True)
            if self.is_listed(name):  # two first requests at once: the other one has registered it
                return
            message = f"{self.settings.host} does not load the adapter: {error.message}"
            raise RemoteError("adapter_not_served", message) from error
        self.models(fresh=True)

    def serve_adapter(self, name: str, sha256: str) -> str:
        """The server's name of an adapter; one that we register has its hash in the name: no other passes for it.

        Raises RemoteError adapter_not_served, with what to do.
        """
        folder = self.settings.adapters_dir
        if folder:
            registered = f"{name}-{sha256[:12]}"
            if not self.is_listed(registered):
                self.load_adapter(registered, f"{folder.rstrip('/')}/{name}")
            return registered
        if not self.is_listed(name):
            self.models(fresh=True)
        if not self.is_listed(name):
            line = f"--lora-modules {name}=/path/to/adapters/{name}"
            raise RemoteError("adapter_not_served", f"{self.settings.host} does not serve {name}: start it with {line}")
        return name

    def complete(self, body: Mapping[str, Any], *, seconds: float | None = None) -> dict[str, Any]:
        """One whole answer in OpenAI's shape, as the server gives it; raises RemoteError and RemoteRefusalError."""
        answer = self._json(self._send("POST", "/chat/completions", dict(body), seconds=seconds))
        if not isinstance(answer, dict):
            raise RemoteError("inference_server_failed", f"{self.settings.host} gave no chat completion")
        return answer

    def stream(
        self,
        body: Mapping[str, Any],
        is_cancelled: Callable[[], bool] = lambda: False,
        when_cancelled: Callable[[Callable[[], None]], None] = lambda then: None,
    ) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer with its usage; ends with the connection closed once cancelled.

        `when_cancelled` takes what ends the waiting for a server that says nothing (a long queue before the first
        token). Raises RemoteError (client_gone when cancelled) and RemoteRefusalError.
        """
        asked = dict(body) | {"stream": True, "stream_options": {"include_usage": True}}
        until, finished = time.monotonic() + self.settings.seconds, False
        try:
            with self.http.stream("POST", "/chat/completions", json=asked) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise self._refusal(response)
                hang_up = HangUp(response)
                when_cancelled(hang_up)
                try:
                    for chunk in self._chunks(self._in_time(sent_lines(response), until, is_cancelled)):
                        finished = finished or any(choice.get("finish_reason") for choice in chunk.get("choices") or [])
                        yield chunk
                finally:
                    hang_up.is_over()
        except httpx.HTTPError as error:
            if is_cancelled():
                raise given_up() from error
            raise self._unreachable(error) from error
        if not finished:
            if is_cancelled():
                raise given_up()
            raise RemoteError("inference_server_failed", f"the stream of {self.settings.host} broke off")

    def _in_time(self, lines: Iterator[str], until: float, is_cancelled: Callable[[], bool]) -> Iterator[str]:
        """Every line, comments that only keep the connection open among them, while somebody wants the answer."""
        for line in lines:
            if is_cancelled():
                raise given_up()
            if time.monotonic() > until:
                raise self._too_slow()
            yield line

    def _chunks(self, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        taken = 0
        for line in lines:
            taken += len(line)
            if taken > LARGEST_ANSWER_BYTES:
                raise RemoteError("inference_server_failed", f"the answer of {self.settings.host} does not end")
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                return
            chunk = self._parsed(data)
            if not isinstance(chunk, dict) or "error" in chunk:
                raise RemoteError("inference_server_failed", f"{self.settings.host} failed in the middle of an answer")
            yield chunk

    def _send(self, method: str, route: str, body: Any = None, *, seconds: float | None = None) -> httpx.Response:
        timeout = httpx.Timeout(seconds or self.settings.seconds, connect=CONNECT_SECONDS)
        try:
            response = self.http.request(method, route, json=body, timeout=timeout)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != httpx.codes.OK:
            raise self._refusal(response)
        return response

    def _json(self, response: httpx.Response) -> Any:
        return self._parsed(response.text)

    def _parsed(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RemoteError("inference_server_failed", f"{self.settings.host} does not answer in JSON") from error

    def _unreachable(self, error: httpx.HTTPError) -> RemoteError:
        if isinstance(error, httpx.ReadTimeout):
            return self._too_slow()
        self._forget()
        message = f"{self.settings.host} cannot be reached ({type(error).__name__})"
        return RemoteError("inference_server_unreachable", message)

    def _forget(self) -> None:
        """It may be another process by now, with other models and other flags."""
        self._models = (0.0, [])
        self.losses += 1

    def _too_slow(self) -> RemoteError:
        return RemoteError("generation_timeout", f"the answer was not there within {self.settings.seconds:.0f} s")

    def _refusal(self, response: httpx.Response) -> EngineError:
        status, host = response.status_code, self.settings.host
        if response.is_redirect:
            return RemoteError("inference_server_failed", f"{host} sends us elsewhere, which is not followed")
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            return RemoteError("inference_server_denied", f"{host} does not take our key: set QWEN3VL_INFERENCE_KEY")
        if status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
            return RemoteError("inference_server_busy", f"{host} is busy ({status})")
        if status == httpx.codes.NOT_FOUND and response.request.url.path.endswith("/chat/completions"):
            self._forget()  # it listed the model: it was started again since, or the adapter taken out
            return RemoteError("inference_server_busy", f"{host} no longer knows the model: {own_words(response)}")
        if status < httpx.codes.INTERNAL_SERVER_ERROR:
            return RemoteRefusalError("inference_server_refused", f"{host}: {own_words(response)}")
        return RemoteError("inference_server_failed", f"{host} failed ({status})")

    def close(self) -> None:
        self.http.close()


def sent_lines(response: httpx.Response) -> Iterator[str]:
    """The lines of an event stream; httpx's own also end at U+2028 and U+0085, which may stand in an answer's JSON."""
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")


def given_up() -> RemoteError:
    return RemoteError("client_gone", "the answer was given up")


class HangUp:
    """Ends a read that waits in another thread (closing the socket would not wake it), unless it is over."""

    def __init__(self, response: httpx.Response) -> None:
        self._response: httpx.Response | None = response
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            response = self._response
            if response is None or response.is_closed:
                return
            stream = response.extensions.get("network_stream")
            connection = stream.get_extra_info("socket") if stream is not None else None
            if connection is not None:
                with suppress(OSError):
                    # Not SSLSocket's own, which takes its state away from the thread that reads.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def is_over(self) -> None:
        """The connection may carry another request from now on."""
        with self._lock:
            self._response = None


def own_words(response: httpx.Response) -> str:
    """The message of an error body in OpenAI's or FastAPI's shape, cut to a sentence's length."""
    try:
        body = response.json()
        error = body.get("error", body)
        text = str(error["message"] if isinstance(error, dict) and "message" in error else error)
    except (ValueError, AttributeError):
        text = response.text
    return f"{response.status_code} {text[:300]}".strip()


def openai_settings(params: GenerationParams) -> dict[str, Any]:
    """The settings in OpenAI's and vLLM's names, where temperature 0 is greedy."""
    if params.greedy:
        return {"max_tokens": params.max_new_tokens, "temperature": 0.0}
    sampling = {
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "min_p": params.min_p,
    }
    return sampling if params.seed is None else sampling | {"seed": params.seed}


def embedded_picture(url: str) -> str:
    """A file:// URL of our image cache as a data URI; any other URL as it is."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        return url
    path = Path(unquote(parts.path))
    content = path.read_bytes()
    return f"data:{media_type(content, path)};base64,{base64.b64encode(content).decode()}"


MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"BM": "image/bmp"}


def media_type(content: bytes, path: Path) -> str:
    """By the first bytes, since files of the cache are named by their hash."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    known = next((name for magic, name in MAGIC.items() if content.startswith(magic)), None)
    return known or mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def with_embedded_pictures(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI-format messages whose pictures need no file of ours."""
    return [message | {"content": _embedded(message["content"])} for message in messages]


def _embedded(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [
        {"type": "image_url", "image_url": {"url": embedded_picture(part["image_url"]["url"])}}
        if part["type"] == "image_url"
        else part
        for part in content
    ]
