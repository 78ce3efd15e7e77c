"""Gathers the model server's requests into batches: those that come together, and those that wait for a batch's end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from ftproject.engine.answering import ChatAnswer, ChatRequest
from ftproject.engine.decoding import CancelledGenerationError

# Clients that start together arrive within a few milliseconds; alone, a request is answered so much later.
GATHER_SECONDS = 0.002
LARGEST_BATCH = 16
LOOK_SECONDS = 0.25  # between two looks whether an answer that waits for its batch is still wanted

AnswerBatch = Callable[[Sequence[ChatRequest]], Awaitable[list[ChatAnswer]]]


class Batcher:
    """First come, first served, up to `LARGEST_BATCH` at once; lives on one event loop."""

    def __init__(self, answer: AnswerBatch) -> None:
        self._answer = answer
        self._waiting: deque[tuple[ChatRequest, asyncio.Future[ChatAnswer]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, request: ChatRequest) -> ChatAnswer:
        """The answer as soon as it is known, or its `error` raised; what is given up while it waits leaves the line."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ChatAnswer] = loop.create_future()

        def tell(answer: ChatAnswer) -> None:
            loop.call_soon_threadsafe(settle, future, answer)

        asked = (replace(request, on_answer=tell), future)
        self._waiting.append(asked)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        while not (await asyncio.wait({future}, timeout=LOOK_SECONDS))[0]:
            if asked in self._waiting and (error := reason_to_leave(request)):
                self._waiting.remove(asked)
                raise error
        answer = future.result()
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
                settle(future, answer)


def settle(future: asyncio.Future[ChatAnswer], answer: ChatAnswer) -> None:
    if not future.done():  # it was told before its batch ended, or its reader was cancelled
        future.set_result(answer)


def reason_to_leave(request: ChatRequest) -> Exception | None:
    """Why nobody needs an answer any more: its reader has left, or its time is over."""
    try:
        given_up = request.decoding.is_cancelled is not None and request.decoding.is_cancelled()
    except Exception as error:
        return error
    return CancelledGenerationError() if given_up else None
