"""A socket ends with its key, and not because the database is slow."""

import asyncio
from typing import Any

import pytest

from ftproject.core import keyed_socket
from ftproject.core.errors import UnauthorizedError, UnavailableError
from ftproject.core.keyed_socket import KeyedSocket


class Wire:
    """A client that says nothing, and what it was sent."""

    def __init__(self, *verdicts: Exception | None) -> None:
        self.verdicts = list(verdicts)
        self.sent: list[Any] = []
        self.judged = 0

    async def receive(self) -> Any:
        await asyncio.Event().wait()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def judge(self) -> None:
        self.judged += 1
        if self.verdicts and (verdict := self.verdicts.pop(0)):
            raise verdict


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed_socket, "CHECK_SECONDS", 0.001)


async def test_a_revoked_key_closes_its_socket_and_the_application_is_told() -> None:
    wire = Wire(None, None, UnauthorizedError("The API key x was revoked.", code="revoked_api_key"))
    async with KeyedSocket(wire.receive, wire.send, wire.judge).watched() as socket:
        assert await socket.receive() == {"type": "websocket.disconnect", "code": 4401}
        await socket.send({"type": "websocket.send", "text": "too late"})
    assert wire.sent == [{"type": "websocket.close", "code": 4401, "reason": "The API key x was revoked."}]
    assert wire.judged == 3


async def test_a_database_that_does_not_answer_closes_nothing() -> None:
    wire = Wire(UnavailableError("busy"), UnavailableError("busy"))
    async with KeyedSocket(wire.receive, wire.send, wire.judge).watched() as socket:
        async with asyncio.timeout(10):
            while wire.judged < 4:
                await asyncio.sleep(0.001)
        await socket.send({"type": "websocket.send", "text": "still here"})
    assert [message["type"] for message in wire.sent] == ["websocket.send"]


async def test_the_watch_ends_with_the_socket() -> None:
    wire = Wire()
    async with KeyedSocket(wire.receive, wire.send, wire.judge).watched():
        pass
    seen = wire.judged
    await asyncio.sleep(0.02)
    assert wire.judged == seen


async def test_what_the_client_says_arrives() -> None:
    wire = Wire()

    async def receive() -> Any:
        return {"type": "websocket.receive", "text": "hello"}

    async with KeyedSocket(receive, wire.send, wire.judge).watched() as socket:
        assert (await socket.receive())["text"] == "hello"
