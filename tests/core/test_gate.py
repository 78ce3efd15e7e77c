"""The local-request gate against an oracle written from the contract's sentence, over the product of all headers."""

import itertools
import json
from typing import Any

import pytest

from ftproject.core.gate import LocalGate, refusal_of

PEERS = [("127.0.0.1", 5), ("127.9.9.9", 5), ("::1", 5), ("10.0.0.7", 5), ("203.0.113.9", 5), ("testclient", 5), None]
HOSTS = [
    "localhost",
    "localhost:8000",
    "127.0.0.1:8000",
    "[::1]:8000",
    "evil.example",
    "localhost.",
    "0.0.0.0:8000",
    "",
]
ORIGINS = [None, "http://{host}", "https://evil.example", "null"]
SITES = [None, "same-origin", "none", "cross-site", "same-site"]
METHODS = ["GET", "POST"]
FORWARDED = [None, "x-forwarded-for", "forwarded", "x-real-ip"]


def scope_of(peer: Any, host: str, origin: str | None, site: str | None, method: str, forwarded: str | None) -> Any:
    headers = [("host", host)]
    headers += [("origin", origin.format(host=host))] if origin else []
    headers += [("sec-fetch-site", site)] if site else []
    headers += [(forwarded, "1.2.3.4")] if forwarded else []
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return {"type": "http", "method": method, "path": "/api/x", "headers": raw, "client": peer}


def oracle(peer: Any, host: str, origin: str | None, site: str | None, method: str, forwarded: str | None) -> bool:
    loopback = peer is None or peer[0].startswith("127.") or peer[0] == "::1"
    named = host in {"localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000"}
    same = site in {None, "same-origin", "none"}
    from_here = origin is None or (origin == "http://{host}" and named)
    return loopback and named and forwarded is None and (method == "GET" or (same and from_here))


def test_the_gate_agrees_with_the_contract_on_every_combination() -> None:
    cases = list(itertools.product(PEERS, HOSTS, ORIGINS, SITES, METHODS, FORWARDED))
    wrong = [case for case in cases if (refusal_of(scope_of(*case)) is None) != oracle(*case)]
    assert len(cases) > 8000
    assert wrong == []


@pytest.mark.parametrize("name", ["host", "origin", "sec-fetch-site"])
def test_a_repeated_deciding_header_is_refused(name: str) -> None:
    scope = scope_of(("127.0.0.1", 1), "localhost", "http://{host}", "same-origin", "POST", None)
    scope["headers"] += [(name.encode(), b"localhost")]
    assert refusal_of(scope)


@pytest.mark.parametrize(
    ("origin", "admitted"), [(None, True), ("http://localhost", True), ("http://evil.example", False)]
)
def test_a_web_socket_needs_no_origin_but_a_foreign_one_is_refused(origin: str | None, admitted: bool) -> None:
    scope = scope_of(("127.0.0.1", 1), "localhost", origin, None, "GET", None) | {"type": "websocket"}
    assert (refusal_of(scope) is None) is admitted


async def test_a_refusal_is_a_problem_that_says_what_to_do() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("the application must not be reached")

    scope = scope_of(("203.0.113.9", 1), "localhost", None, None, "POST", None)
    await LocalGate(app)(scope, None, send)  # type: ignore[arg-type]
    body = json.loads(sent[1]["body"])
    assert (sent[0]["status"], body["code"]) == (401, "authentication_required")
    assert "localhost" in body["hint"]


async def test_a_refused_web_socket_is_closed_before_it_opens() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def app(*_: Any) -> None:
        raise AssertionError("the application must not be reached")

    scope = scope_of(("127.0.0.1", 1), "evil.example", None, None, "GET", None) | {"type": "websocket"}
    await LocalGate(app)(scope, receive, send)
    assert sent[0]["type"] == "websocket.close"
