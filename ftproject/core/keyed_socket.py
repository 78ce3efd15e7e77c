"""A WebSocket that was opened with an API key lives no longer than the key."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Self

from ftproject.core.errors import ProductError, UnauthorizedError

Message = MutableMapping[str, Any]
CHECK_SECONDS = 30.0
KEY_ENDED = 4401


class KeyedSocket:
    """`receive` and `send` for the application; `watch` ends both when the key is no longer good."""

    def __init__(
        self,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        judge: Callable[[], Awaitable[object]],
    ) -> None:
        self._receive, self._send, self._judge = receive, send, judge
        self.ended = asyncio.Event()

    async def receive(self) -> Message:
        message = asyncio.ensure_future(self._receive())
        end = asyncio.ensure_future(self.ended.wait())
        try:
            await asyncio.wait({message, end}, return_when=asyncio.FIRST_COMPLETED)
            return message.result() if message.done() else {"type": "websocket.disconnect", "code": KEY_ENDED}
        finally:
            message.cancel()
            end.cancel()

    async def send(self, message: Message) -> None:
        if not self.ended.is_set():  # after the close a server takes nothing any more
            await self._send(message)

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._judge()
            except UnauthorizedError as refusal:
                self.ended.set()
                await self._send({"type": "websocket.close", "code": KEY_ENDED, "reason": refusal.detail[:120]})
                return
            except ProductError:
                continue  # the database does not answer; that says nothing about the key

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[Self]:
        watch = asyncio.ensure_future(self.watch())
        try:
            yield self
        finally:
            watch.cancel()
