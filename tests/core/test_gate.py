"""The gate's answers and its ways; who may pass is tests/system/test_gate_matrix.py."""

import json
from typing import Any

import pytest

from ftproject.core.api_keys import CREATE_HINT
from ftproject.core.callers import SCOPE_KEY, Caller
from ftproject.core.errors import BusyError, UnauthorizedError
from ftproject.core.gate import Gate
from ftproject.core.local_requests import Headers, foreign_reason
from ftproject.core.models import ApiKey, KeyScope

LOCAL = ("127.0.0.1", 5)
STRANGER = ("203.0.113.9", 5)
GOOD = "qwen3vl_good"


class OneKey:
    """Knows one key; counts what it is asked."""

    def __init__(self, scope: KeyScope = KeyScope.RUN) -> None:
        self.row = ApiKey(prefix="qwen3vl_1a2b3c4d", name="x", scope=scope)
        self.asked: list[tuple[str, str]] = []

    async def judge(self, key: str, peer: str) -> ApiKey:
        self.asked.append((key, peer))
        if key == "qwen3vl_throttled":
            raise BusyError("Too many.", code="too_many_wrong_keys", headers={"Retry-After": "9"})
        if key != GOOD:
            raise UnauthorizedError("Not known.", code="invalid_api_key", hint=CREATE_HINT)
        return self.row


class World:
    """An application behind a gate, and what came out of both."""

    def __init__(self, keys: OneKey) -> None:
        self.callers: list[Caller] = []
        self.sent: list[Any] = []
        self.keys = keys
        self.gate = Gate(self.application, keys=keys, scope_of=lambda method, path: KeyScope.RUN)

    async def application(self, scope: Any, receive: Any, send: Any) -> None:
        self.callers.append(scope[SCOPE_KEY])

    async def ask(self, scope: dict[str, Any]) -> None:
        async def receive() -> Any:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            self.sent.append(message)

        await self.gate(scope, receive, send)

    @property
    def body(self) -> Any:
        return json.loads(self.sent[1]["body"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}


@pytest.fixture
def world() -> World:
    return World(OneKey())


def scope_of(client: Any = LOCAL, key: str | None = None, path: str = "/api/x", **headers: str) -> dict[str, Any]:
    given = {"host": "localhost", **headers} | ({"authorization": f"Bearer {key}"} if key else {})
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    return {"type": "http", "method": "POST", "path": path, "headers": raw, "client": client}


async def test_a_local_request_needs_no_key_and_asks_for_none(world: World) -> None:
    await world.ask(scope_of())
    assert [caller.kind for caller in world.callers] == ["local"]
    assert world.keys.asked == []


async def test_a_local_request_may_carry_the_key_that_openai_clients_cannot_leave_out(world: World) -> None:
    await world.ask(scope_of(key="sk-not-needed"))
    assert [caller.kind for caller in world.callers] == ["local"]


async def test_a_key_of_ours_is_judged_even_on_a_local_request(world: World) -> None:
    await world.ask(scope_of(key="qwen3vl_revoked"))
    assert world.callers == []
    assert (world.sent[0]["status"], world.body["code"]) == (401, "invalid_api_key")


async def test_a_stranger_with_a_good_key_passes_and_is_known_by_its_prefix(world: World) -> None:
    await world.ask(scope_of(STRANGER, GOOD, host="ft.example.com", x_forwarded_for="10.1.1.1", origin="https://a.b"))
    assert [(caller.kind, caller.name) for caller in world.callers] == [("key", "qwen3vl_1a2b3c4d")]
    assert world.keys.asked == [(GOOD, "203.0.113.9")]


async def test_a_refusal_without_a_key_is_a_problem_that_says_what_to_do(world: World) -> None:
    await world.ask(scope_of(STRANGER))
    assert (world.sent[0]["status"], world.body["code"]) == (401, "authentication_required")
    assert "localhost" in world.body["hint"]
    assert "api_key create" in world.body["hint"]
    assert world.headers["www-authenticate"] == 'Bearer realm="qwen3vl"'
    assert int(world.headers["content-length"]) == len(world.sent[1]["body"])


async def test_a_key_without_the_scope_is_403_and_told_which_it_needs() -> None:
    world = World(OneKey(KeyScope.READ))
    await world.ask(scope_of(STRANGER, GOOD))
    assert (world.sent[0]["status"], world.body["code"]) == (403, "insufficient_scope")
    assert world.body["needed_scope"] == "run"
    assert "--scope run" in world.body["hint"]
    assert 'error="insufficient_scope", scope="run"' in world.headers["www-authenticate"]


async def test_too_many_wrong_keys_are_429_with_the_time_to_wait(world: World) -> None:
    await world.ask(scope_of(STRANGER, "qwen3vl_throttled"))
    assert (world.sent[0]["status"], world.headers["retry-after"]) == (429, "9")


async def test_below_v1_a_refusal_has_the_shape_of_openai(world: World) -> None:
    await world.ask(scope_of(STRANGER, "sk-wrong", path="/v1/chat/completions"))
    error = world.body["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
    assert "api_key create" in error["message"]
    assert world.headers["content-type"] == "application/json"


async def test_the_path_of_a_refusal_may_be_no_text(world: World) -> None:
    await world.ask(scope_of(STRANGER, path="/api/\udcff\x00"))
    assert world.sent[0]["status"] == 401


async def test_a_prefix_that_the_server_was_told_does_not_hide_a_route() -> None:
    seen: list[str] = []

    def scope_of_request(method: str, path: str) -> KeyScope:
        seen.append(path)
        return KeyScope.ADMIN

    gate = Gate(World(OneKey()).application, keys=OneKey(), scope_of=scope_of_request)
    world = World(OneKey())
    world.gate = gate
    await world.ask(scope_of(STRANGER, GOOD, path="/ft/api/datasets/1") | {"root_path": "/ft"})
    assert seen == ["/api/datasets/1"]
    assert world.sent[0]["status"] == 403


async def test_a_refused_socket_is_closed_before_it_opens(world: World) -> None:
    await world.ask(scope_of(STRANGER) | {"type": "websocket"})
    assert [(message["type"], message["code"]) for message in world.sent] == [("websocket.close", 4401)]
    assert "not local" in world.sent[0]["reason"]


async def test_a_refused_socket_is_told_why_where_the_server_can(world: World) -> None:
    await world.ask(scope_of(STRANGER) | {"type": "websocket", "extensions": {"websocket.http.response": {}}})
    assert [message["type"] for message in world.sent] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert world.body["code"] == "authentication_required"


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "192.168.1.5:8000", "[fe80::1]:8000", "box.lan"])
async def test_the_admin_answers_under_addresses_and_listed_names(host: str, world: World, settings: Any) -> None:
    settings.ADMIN_HOSTS = frozenset({"box.lan"})
    await world.ask(scope_of(STRANGER, path="/admin/login/", host=host))
    assert len(world.callers) == 1


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.1", "", "box.lan.evil.example"])
async def test_no_name_of_somebody_else_reaches_the_admins_login(host: str, world: World, settings: Any) -> None:
    settings.ADMIN_HOSTS = frozenset({"box.lan"})
    await world.ask(scope_of(path="/admin/login/", host=host))
    assert (world.sent[0]["status"], world.body["code"]) == (403, "host_not_allowed")
    assert "QWEN3VL_ADMIN_HOSTS" in world.body["hint"]
    assert world.callers == []


@pytest.mark.parametrize("path", ["/adminx", "/admin.", "/staticx/y", "/administration/"])
async def test_only_the_admin_and_static_files_stand_before_the_gate(path: str, world: World) -> None:
    await world.ask(scope_of(STRANGER, path=path))
    assert world.callers == []


@pytest.mark.parametrize("name", ["host", "origin", "sec-fetch-site", "authorization"])
def test_a_deciding_header_that_is_repeated_makes_a_request_foreign(name: str) -> None:
    scope = scope_of(origin="http://localhost", sec_fetch_site="same-origin", authorization="Bearer x")
    assert foreign_reason(scope, Headers.of(scope)) is None
    scope["headers"] += [(name.encode(), b"localhost")]
    assert name in str(foreign_reason(scope, Headers.of(scope)))
