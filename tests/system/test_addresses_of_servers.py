"""Our own commands and servers elsewhere: with a key, and a server that takes even its own machine for a stranger."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from ftproject.system import serving
from ftproject.system.client import ApiClient


@pytest.fixture
def guarded_server() -> Iterator[tuple[str, list[str | None]]]:
    """Answers 401 to whoever has no key, as a server does to all that call it by the address of its network card."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(200 if seen[-1] else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "ok"}).encode())

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    server.server_close()


def test_a_server_that_asks_for_a_key_is_up_but_not_ours_to_use(guarded_server: tuple[str, list[str | None]]) -> None:
    url, _ = guarded_server
    assert serving.is_up(url)
    assert not serving.answers(url)


def test_what_does_not_answer_is_not_up() -> None:
    assert not serving.is_up("http://127.0.0.1:9")


def test_our_commands_send_the_key_of_the_environment_and_none_without_one(
    guarded_server: tuple[str, list[str | None]], settings: Any
) -> None:
    url, seen = guarded_server
    settings.API_KEY = "qwen3vl_x"
    assert ApiClient(url).get("/api/system/health") == {"status": "ok"}
    settings.API_KEY = ""
    ApiClient(url).http.get("/")
    assert seen == ["Bearer qwen3vl_x", None]
