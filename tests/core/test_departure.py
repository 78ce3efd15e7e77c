"""A view's thread learns that its client has left."""

import asyncio
import itertools
import time
from types import SimpleNamespace
from typing import Any

from ftproject.core.departure import SCOPE_KEY, Departure, while_wanted
from ftproject.core.wsgi_bridge import WsgiBridge


def test_what_was_asked_for_happens_once_and_at_once_when_it_is_late() -> None:
    departure, calls = Departure(), list[str]()
    departure.when_happened(lambda: calls.append("before"))
    departure.happen()
    departure.happen()
    departure.when_happened(lambda: calls.append("after"))
    assert calls == ["before", "after"]


async def run_request(messages: list[dict[str, Any]], app: Any) -> list[dict[str, Any]]:
    """One POST through the bridge; after `messages` the connection stays open."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "http_version": "1.1"}
    await asyncio.wait_for(WsgiBridge(app)(scope | {"headers": [(b"content-length", b"2")]}, receive, send), 5)
    return sent


def answer(start_response: Any, text: str) -> list[bytes]:
    start_response("200 OK", [])
    return [text.encode()]


async def test_a_client_that_leaves_after_its_body_is_noticed() -> None:
    def wait_for_departure(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        import threading

        gone = threading.Event()
        environ["wsgi.input"].read()
        environ["asgi.scope"][SCOPE_KEY].when_happened(gone.set)
        return answer(start_response, "gone" if gone.wait(3) else "still there")

    sent = await run_request([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}], wait_for_departure)
    assert sent[1]["body"] == b"gone"


async def test_a_client_that_stays_has_not_left_and_nothing_is_left_running() -> None:
    def look(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        return answer(start_response, f"{body.decode()} {environ['asgi.scope'][SCOPE_KEY].happened}")

    sent = await run_request([{"type": "http.request", "body": b"{}"}], look)
    assert sent[1]["body"] == b"{} False"
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def test_a_long_answer_ends_when_nobody_reads_it() -> None:
    made: list[int] = []

    def stream(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        for number in while_wanted(SimpleNamespace(META=environ), itertools.count()):
            made.append(number)
            time.sleep(0.01)
            yield b"row"

    await run_request([{"type": "http.request", "body": b""}, {"type": "http.disconnect"}], stream)
    assert 0 <= len(made) < 50


def test_under_a_server_that_cannot_tell_the_answer_is_whole() -> None:
    assert list(while_wanted(SimpleNamespace(META={}), iter("abc"))) == ["a", "b", "c"]
