"""Speaks OpenAI's format with the model server over its unix socket; the only connection of this app."""

from pathlib import Path
from typing import Any

import httpx

STATUS_SECONDS = 2.0
# Loading an adapter waits for the base: fetching a 20 GB model from the hub is part of its first load.
LOAD_SECONDS = 1800.0
# The longest answer allowed (8192 tokens) from a slow CPU.
GENERATION_SECONDS = 900.0


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
        transport = httpx.HTTPTransport(uds=str(socket))
        self.http = httpx.Client(transport=transport, base_url="http://model-server", timeout=STATUS_SECONDS)

    def status(self) -> dict[str, Any] | None:
        """What the server says of itself; None while it does not answer."""
        try:
            told = self.http.get("/status").raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return None
        return told if isinstance(told, dict) else None

    def load_adapter(self, name: str, path: Path) -> None:
        """Raises ServerDiedError and ServerRefusedError."""
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)}, LOAD_SECONDS)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """A chat completion; raises ServerDiedError and ServerRefusedError."""
        response = self._post("/v1/chat/completions", body, GENERATION_SECONDS)
        try:
            answer: dict[str, Any] = response.json()
        except ValueError as error:
            raise ServerDiedError("its answer is not JSON") from error
        return answer

    def _post(self, route: str, body: dict[str, Any], seconds: float) -> httpx.Response:
        try:
            response = self.http.post(route, json=body, timeout=httpx.Timeout(seconds, connect=STATUS_SECONDS))
        except httpx.HTTPError as error:
            raise ServerDiedError(f"{route}: {type(error).__name__}: {error}") from error
        if response.status_code != httpx.codes.OK:
            raise read_refusal(response)
        return response

    def close(self) -> None:
        self.http.close()


def read_refusal(response: httpx.Response) -> ServerRefusedError | ServerDiedError:
    try:
        error = response.json()["error"]
        return ServerRefusedError(response.status_code, str(error["code"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        return ServerDiedError(f"it answered {response.status_code} without saying why")
