"""One chat request on its way through the model server: its pieces as they come, its reader's leaving, its deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

from starlette.requests import Request

from ftproject.engine.answering import ChatAnswer
from ftproject.engine.backends.base import EngineError
from ftproject.engine.decoding import DecodingRequest
from ftproject.engine.server_chat import ChatBody, with_drawn_seed

LOOK_SECONDS = 0.25  # between two looks whether the client is still there


class AskedChat:
    """Made on the event loop; `send` and `is_cancelled` are called in the model's thread."""

    def __init__(self, body: ChatBody, seconds: float) -> None:
        self.body = body
        self.gone = threading.Event()
        self.pieces: asyncio.Queue[str] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.seconds = seconds
        self.until = time.monotonic() + seconds
        self.first = ""

    def decoding(self) -> DecodingRequest:
        return DecodingRequest(
            params=with_drawn_seed(self.body.params),
            stop=self.body.stop,
            on_text=self.send if self.body.stream else None,
            is_cancelled=self.is_cancelled,
        )

    def send(self, piece: str) -> None:
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    def is_cancelled(self) -> bool:
        if time.monotonic() > self.until:
            raise EngineError("generation_timeout", f"the answer was not there within {self.seconds:.0f} s")
        return self.gone.is_set()

    async def begun(self, answer: asyncio.Task[ChatAnswer], request: Request) -> None:
        """Waits for the first piece of a stream, else for the whole answer; a reader that leaves ends it."""
        first = asyncio.create_task(self.pieces.get()) if self.body.stream else None
        waited_for = {answer, first} if first else {answer}
        while not (await asyncio.wait(waited_for, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED))[0]:
            if await request.is_disconnected():
                self.gone.set()
        if first is not None and first.done():
            self.first = first.result()
        elif first is not None:
            first.cancel()
        if answer.done():
            answer.result()  # raises what the answer failed with

    async def pieces_until(self, answer: asyncio.Task[ChatAnswer]) -> AsyncIterator[str]:
        """Every piece in order; ends when the answer has ended and all of it was read."""
        if self.first:
            yield self.first
        while not answer.done() or not self.pieces.empty():
            coming = asyncio.create_task(self.pieces.get())
            await asyncio.wait({answer, coming}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                yield coming.result()
            else:
                coming.cancel()
