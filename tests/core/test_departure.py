"""A view's thread learns that its client has left."""

import asyncio
from typing import Any

from ftproject.core.departure import SCOPE_KEY, Departure
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
