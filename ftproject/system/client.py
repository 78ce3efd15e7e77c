"""A small HTTP client of our own API for the demo: what a user does with curl, with waiting and clear failures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings

POLL_SECONDS = 0.5
TERMINAL = {"completed", "error"}


class ApiError(RuntimeError):
    """An answer that is not 2xx, its text the problem's detail and hint; or, where `silence_told`, none at all."""


class ApiClient:
    def __init__(self, base_url: str) -> None:
        headers = {"Authorization": f"Bearer {settings.API_KEY}"} if settings.API_KEY else {}
        self.http = httpx.Client(base_url=base_url, headers=headers, timeout=120, trust_env=False)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        return checked(self.http.get(path, params=params))

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return checked(self.http.post(path, json=body if body is not None else {}))

    def upload(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as stream:
            return checked(self.http.post("/api/datasets/upload", files={"file": (path.name, stream, "text/csv")}))

    def download(self, path: str, target: Path, **params: Any) -> Path:
        with self.http.stream("GET", path, params=params) as response:
            if response.is_error:
                response.read()
                checked(response)
            with target.open("wb") as stream:
                for chunk in response.iter_bytes():
                    stream.write(chunk)
        return target

    def wait_for_run(self, path: str, on_change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Polls a run until it has ended; ApiError with its reason when it ended badly."""
        while True:
            run = self.get(path)
            on_change(run)
            if run["status"] in TERMINAL:
                break
            time.sleep(POLL_SECONDS)
        if run["status"] == "error":
            raise ApiError(f"{path} failed: {run['error']}")
        return run


@contextmanager
def silence_told() -> Iterator[None]:
    """For a command's one request: a server that is not there is an ApiError as well."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ApiError(f"The server does not answer ({type(error).__name__}): {error}") from None


def checked(response: httpx.Response) -> dict[str, Any]:
    if response.is_success:
        body: dict[str, Any] = response.json()
        return body
    try:
        problem = response.json()
        raise ApiError(f"{response.status_code} {problem['code']}: {problem['detail']} {problem['hint']}")
    except (ValueError, KeyError):
        raise ApiError(f"{response.status_code}: {response.text[:500]}") from None
