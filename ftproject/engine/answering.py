"""Answers chats that came in together: one batch per adapter, halved when memory runs out, each with its own fate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ftproject.engine.backends.base import EngineError, FinishReason
from ftproject.engine.chats import Chat
from ftproject.engine.decoding import DecodedRow, DecodingRequest
from ftproject.engine.encoding import EncodedRow
from ftproject.engine.models import is_out_of_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatRequest:
    """One chat to answer, by the base (`adapter` null) or an adapter.

    `on_answer` gets the answer as soon as there is one: beside a long one in the batch it need not wait for that.
    """

    chat: Chat
    decoding: DecodingRequest
    adapter: Path | None = None
    on_answer: Callable[[ChatAnswer], None] | None = None


@dataclass(frozen=True)
class ChatAnswer:
    """One answer. `prefill_ms` is the time to its first token, `generation_ms` all of it, both of the whole batch.

    `error` set: there is no answer.
    """

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: FinishReason = "length"
    prefill_ms: float = 0.0
    generation_ms: float = 0.0
    error: Exception | None = None


Encode = Callable[[ChatRequest], EncodedRow]
Decode = Callable[[Sequence[EncodedRow], Sequence[DecodingRequest], Path | None], list[DecodedRow]]


def answer_chats(requests: Sequence[ChatRequest], encode: Encode, decode: Decode) -> list[ChatAnswer]:
    """One answer per request, in order. What is wrong with one request is its own `error`; nothing is raised for it.

    A request's `on_answer` may have had its answer before.
    """
    answers: dict[int, ChatAnswer] = {}
    rows: dict[int, EncodedRow] = {}
    for place, request in enumerate(requests):
        try:
            rows[place] = encode(request)
        except Exception as error:
            if not isinstance(error, EngineError):
                logger.exception("a chat could not be encoded")
            answers[place] = ChatAnswer(error=error)
            if request.on_answer is not None:
                request.on_answer(answers[place])
    for adapter in dict.fromkeys(requests[place].adapter for place in rows):
        together = [place for place in rows if requests[place].adapter == adapter]
        decoded = _decode_or_halve(
            [rows[place] for place in together],
            [telling(requests[place], rows[place]) for place in together],
            adapter,
            decode,
        )
        for place, row in zip(together, decoded, strict=True):
            answers[place] = _answer(rows[place], row)
    return [answers[place] for place in range(len(requests))]


def telling(request: ChatRequest, row: EncodedRow) -> DecodingRequest:
    """The request's decoding, which tells its answer when the row has ended."""
    tell = request.on_answer
    if tell is None:
        return request.decoding
    return replace(request.decoding, on_end=lambda decoded: tell(_answer(row, decoded)))


def _decode_or_halve(
    rows: Sequence[EncodedRow], requests: Sequence[DecodingRequest], adapter: Path | None, decode: Decode
) -> list[DecodedRow]:
    """Lack of memory halves the batch; an answer that was already being read starts again without repeating itself."""
    resumable = [_Resumed(request) for request in requests]
    try:
        return decode(rows, [item.request for item in resumable], adapter)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, EngineError):
            if len(rows) == 1:
                return [DecodedRow(error=error)]
        elif not is_out_of_memory(error):
            raise
        elif len(rows) == 1:
            return [DecodedRow(error=EngineError("out_of_memory", "the device has not enough free memory"))]
    half = (len(rows) + 1) // 2
    again = [item.again() for item in resumable]
    return [
        *_decode_or_halve(rows[:half], again[:half], adapter, decode),
        *_decode_or_halve(rows[half:], again[half:], adapter, decode),
    ]


class _Resumed:
    """Counts what a reader has got, so that a second attempt can leave it out (the same draw gives the same text)."""

    def __init__(self, request: DecodingRequest) -> None:
        self.sent = 0
        self._given = request
        self.request = request if request.on_text is None else replace(request, on_text=self._send)

    def _send(self, piece: str) -> None:
        self.sent += len(piece)
        if self._given.on_text is not None:
            self._given.on_text(piece)

    def again(self) -> DecodingRequest:
        forward, skip = self._given.on_text, self.sent
        if forward is None:
            return self._given

        def send_rest(piece: str) -> None:
            nonlocal skip
            rest, skip = piece[skip:], max(0, skip - len(piece))
            if rest:
                forward(rest)

        return replace(self._given, on_text=send_rest)


def _answer(row: EncodedRow, decoded: DecodedRow) -> ChatAnswer:
    return ChatAnswer(
        text=decoded.text,
        prompt_tokens=len(row),
        completion_tokens=len(decoded.ids),
        finish_reason=decoded.finish_reason,
        prefill_ms=decoded.first_token_ms,
        generation_ms=decoded.total_ms,
        error=decoded.error,
    )
