"""Gathers the model server's requests into batches: those that come together, and those that wait for a batch's end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from ftproject.engine.answering import ChatAnswer, ChatRequest

# Clients that start together arrive within a few milliseconds; alone, a request is answered so much later.
GATHER_SECONDS = 0.002
LARGEST_BATCH = 16

AnswerBatch = Callable[[Sequence[ChatRequest]], Awaitable[list[ChatAnswer]]]


class Batcher:
    """First come, first served, up to `LARGEST_BATCH` at once; lives on one event loop."""

    def __init__(self, answer: AnswerBatch) -> None:
        self._answer = answer
        self._waiting: deque[tuple[ChatRequest, asyncio.Future[ChatAnswer]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, request: ChatRequest) -> ChatAnswer:
        """The answer, or its `error` raised."""
        future: asyncio.Future[ChatAnswer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        answer = await future
        if answer.error is not None:
            raise answer.error
        return answer

    async def _work(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(LARGEST_BATCH, len(self._waiting)))]
            try:
                answers = await self._answer([request for request, _ in batch])
            except Exception as error:
                answers = [ChatAnswer(error=error)] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():  # its reader may have been cancelled
                    future.set_result(answer)
