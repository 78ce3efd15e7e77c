"""Decodes one batch in which every row has its own sampling, seed, length, stop texts, stream and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ftproject.engine.backends.base import EngineError, FinishReason
from ftproject.engine.hyperparameters import GenerationParams


class CancelledGenerationError(RuntimeError):
    """Nobody reads this answer any more."""


@dataclass(frozen=True)
class DecodingRequest:
    """How one row of a batch is answered.

    `stop` texts end the answer and are not part of it. `on_text` gets the answer piece by piece as it comes; what it
    raises ends this row alone. `is_cancelled` is asked at every token. `on_end` gets the row as soon as it has ended,
    which may be long before its batch has.
    """

    params: GenerationParams
    stop: tuple[str, ...] = ()
    on_text: Callable[[str], None] | None = None
    is_cancelled: Callable[[], bool] | None = None
    on_end: Callable[[DecodedRow], None] | None = None


@dataclass
class DecodedRow:
    """What became of one row; times in milliseconds from the start of the batch.

    `ids` are the generated tokens, the end token included. With `error` set, the row has no answer.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "length"
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    error: Exception | None = None


def decode_batch(
    generate: Callable[..., Any],
    inputs: dict[str, Any],
    requests: Sequence[DecodingRequest],
    *,
    tokenizer: Any,
    end_ids: set[int],
) -> list[DecodedRow]:
    """Runs `generate` (a transformers `generate`) over left-padded `inputs` of shape (rows, longest).

    The library only ever takes the best token: a row that samples has its token drawn by its own generator first, so
    no row's answer depends on its neighbours. Rows that have ended are padded by the library until the last one ends.
    """
    from transformers import GenerationConfig
    from transformers.generation import LogitsProcessorList, StoppingCriteriaList

    rows = [RowProgress(request, tokenizer, end_ids) for request in requests]
    generate(
        **inputs,
        generation_config=GenerationConfig(
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=max(request.params.max_new_tokens for request in requests),
            eos_token_id=sorted(end_ids),
            pad_token_id=tokenizer.pad_token_id,
        ),
        logits_processor=LogitsProcessorList(row_samplers(requests, inputs["input_ids"].device)),
        stopping_criteria=StoppingCriteriaList([BatchEnd(rows)]),
    )
    return [row.result() for row in rows]


class RowProgress:
    """One row while its batch is generated: its tokens, the text that is certain, and whether it has ended."""

    def __init__(self, request: DecodingRequest, tokenizer: Any, end_ids: set[int]) -> None:
        from tokenizers.decoders import DecodeStream

        self.request = request
        self.ended = False
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._text = ""
        self._sent = 0
        self._stopped_at: int | None = None
        self._row = DecodedRow()
        self._started = time.perf_counter()

    def push(self, token: int) -> None:
        """Takes the row's next token; whatever fails here is this row's failure only."""
        if self.ended:
            return
        try:
            self._take(token)
        except Exception as error:
            self._row.error = error
            self.ended = True
        if self.ended:
            self._row.total_ms = self._elapsed()
            if self.request.on_end is not None:
                self.request.on_end(self.result())

    def _take(self, token: int) -> None:
        if self.request.is_cancelled is not None and self.request.is_cancelled():
            raise CancelledGenerationError
        if not self._ids:
            self._row.first_token_ms = self._elapsed()
        self._ids.append(token)
        self._text += self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        self._stopped_at = first_stop(self._text, self.request.stop)
        length_reached = len(self._ids) >= self.request.params.max_new_tokens
        if token in self._end_ids or self._stopped_at is not None:
            self._row.finish_reason = "stop"
            self._end()
        elif length_reached:
            self._end()
        else:
            self._send(len(self._text) - held_back(self._text, self.request.stop))

    def _end(self) -> None:
        """The whole text once more from all tokens: bytes of an unfinished character become a replacement character."""
        self.ended = True
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        self._text = whole if self._stopped_at is None else self._text[: self._stopped_at]
        self._send(len(self._text))

    def _send(self, until: int) -> None:
        piece = self._text[self._sent : until]
        if piece and self.request.on_text is not None:
            self._sent = until
            self.request.on_text(piece)

    def _elapsed(self) -> float:
        return (time.perf_counter() - self._started) * 1000

    def result(self) -> DecodedRow:
        """What became of the row, once its batch is over."""
        if not self.ended:  # the library stopped before the row's own end: no answer may pass for whole
            self._row.error = self._row.error or EngineError("generation_failed", "the generation broke off")
        self._row.text, self._row.ids = self._text, tuple(self._ids)
        return self._row


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop text begins, null when there is none.

    >>> first_stop("one. two", [". ", "two"])
    3
    """
    return min((place for word in stop if (place := text.find(word)) >= 0), default=None)


def held_back(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop text, and must not be sent yet.

    >>> held_back("Answer: 7 <en", ["<end>"])
    3
    """
    longest = 0
    for word in stop:
        for length in range(min(len(word) - 1, len(text)), longest, -1):
            if text.endswith(word[:length]):
                longest = length
                break
    return longest


def row_samplers(requests: Sequence[DecodingRequest], device: Any) -> list[Any]:
    """The one logits processor of a batch that draws for its sampling rows; none when all rows are greedy."""
    from transformers.generation import LogitsProcessor

    draws = {place: RowDraw(item.params, device) for place, item in enumerate(requests) if not item.params.greedy}
    if not draws:
        return []

    class RowSampler(LogitsProcessor):  # type: ignore[misc]
        """Leaves a sampling row one possible token: the drawn one. Scores have shape (rows, vocabulary)."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            for place, draw in draws.items():
                token = draw(input_ids[place : place + 1], scores[place : place + 1])
                scores[place] = float("-inf")
                scores[place, token] = 0.0
            return scores

    return [RowSampler()]


class RowDraw:
    """Draws one row's tokens with a generator of its own, by transformers' temperature, top-p and min-p."""

    def __init__(self, params: GenerationParams, device: Any) -> None:
        import torch
        from transformers.generation.logits_process import MinPLogitsWarper, TemperatureLogitsWarper, TopPLogitsWarper

        self._warpers = [TemperatureLogitsWarper(float(params.temperature))]
        if params.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(float(params.top_p)))
        if params.min_p > 0.0:
            self._warpers.append(MinPLogitsWarper(float(params.min_p)))
        self._generator = torch.Generator(device=device)
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def __call__(self, ids: Any, scores: Any) -> int:
        import torch

        for warp in self._warpers:
            scores = warp(ids, scores)
        return int(torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=self._generator))


class BatchEnd:
    """A transformers stopping criterion: hands each row its newest token, and says which rows have ended."""

    def __init__(self, rows: Sequence[RowProgress]) -> None:
        self.rows = rows

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            row.push(token)
        return torch.tensor([row.ended for row in self.rows], device=input_ids.device)
