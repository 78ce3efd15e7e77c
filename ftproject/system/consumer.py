"""The `/ws` consumer: replays what a client missed, then forwards what the tail hands it."""

import asyncio
import contextlib
import json
from typing import Any
from urllib.parse import parse_qs

from channels.generic.websocket import AsyncWebsocketConsumer

from ftproject.core.events import EVENT_TYPES, EventMessage
from ftproject.core.tail import Subscription, tail
from ftproject.system.gpu_broadcast import gpu_broadcast

BAD_QUERY = 4400
TOO_SLOW = 4408


class EventConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """`?since=<id>` replays stored events after that id; `?types=a,b` filters. Inbound frames are ignored."""

    subscription: Subscription | None = None
    forwarder: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        try:
            since, types = parse_query(self.scope["query_string"])
        except ValueError as exc:
            await self.accept()
            await self.close(code=BAD_QUERY, reason=str(exc)[:120])
            return
        # Subscribed first: once the socket is open, no event may pass it by.
        self.subscription = await tail.subscribe(types)
        await self.accept()
        gpu_broadcast.ensure_started()
        self.forwarder = asyncio.create_task(self.forward(self.subscription, since, types))

    async def disconnect(self, code: int) -> None:
        if self.subscription:
            tail.unsubscribe(self.subscription)
        if self.forwarder:
            self.forwarder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.forwarder

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Clients have nothing to say here."""

    async def forward(self, subscription: Subscription, since: int | None, types: frozenset[str]) -> None:
        replayed = await self.replay(since, types) if since is not None else frozenset()
        while True:
            for message in await subscription.take():
                # What was stored between subscribing and replaying comes both ways.
                if message["id"] not in replayed or message["type"] == "gpu_stats":
                    await self.send_message(message)
            if subscription.overflowed:
                await self.close(code=TOO_SLOW, reason="too slow: reconnect with ?since=<last id>")
                return

    async def replay(self, since: int, types: frozenset[str]) -> frozenset[int]:
        until, replayed = tail.last_id, set[int]()
        while messages := await tail.replay(since, until, types):
            for message in messages:
                await self.send_message(message)
            since = messages[-1]["id"]
            replayed.update(message["id"] for message in messages)
        return frozenset(replayed)

    async def send_message(self, message: EventMessage) -> None:
        await self.send(text_data=json.dumps(message))


def parse_query(query_string: bytes) -> tuple[int | None, frozenset[str]]:
    """`since` and `types` of the address; ValueError says what is wrong."""
    query: dict[str, Any] = parse_qs(query_string.decode("latin-1"))
    types = frozenset(name for value in query.get("types", []) for name in value.split(",") if name)
    unknown = sorted(types - set(EVENT_TYPES))
    if unknown:
        raise ValueError(f"unknown event type {unknown[0]!r}")
    raw = query.get("since", [None])[-1]
    if raw is None:
        return None, types
    if not raw.isdecimal() or len(raw) > 18:
        raise ValueError("since must be an event id")
    return int(raw), types
