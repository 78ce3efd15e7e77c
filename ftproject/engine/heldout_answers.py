"""Answers some held-out rows while training, with the adapter as it stands, and scores the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ftproject.engine.decoding import DecodingRequest, decode_batch
from ftproject.engine.encoding import IGNORED, EncodedRow, build_batch
from ftproject.engine.hyperparameters import GenerationParams
from ftproject.engine.metrics import exact_match, token_scores
from ftproject.engine.pixel_cache import PixelCache

SPARE_TOKENS = 8  # beyond the longest true answer: enough to see that an answer does not end
LONGEST_ANSWER = 256
END_TOKENS = 2  # the end of the turn and a newline, which labels have as well
Generating = Callable[[Any], AbstractContextManager[None]]


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """The model without dropout and gradients, and as it was afterwards."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def spread(rows: Sequence[EncodedRow], count: int) -> list[int]:
    """`count` places evenly over the rows: the first ones of a sorted table would all have one answer."""
    return sorted({place * len(rows) // count for place in range(count)}) if rows else []


def cut_answers(rows: Sequence[EncodedRow]) -> str | None:
    """A sentence where true answers are longer than what is generated: no score of theirs can be whole."""
    long = [row.index for row in rows if _answer_tokens(row) > LONGEST_ANSWER + END_TOKENS]
    if not long:
        return None
    return (
        f"eval_exact_match and eval_token_f1 are too low for {len(long)} of {len(rows)} held-out rows (row {long[0]} "
        f"is the first): their answers are longer than the {LONGEST_ANSWER} tokens generated while training"
    )


def _answer_tokens(row: EncodedRow) -> int:
    return sum(label != IGNORED for label in row.labels)


class HeldoutAnswers:
    """Greedy answers to the same held-out rows each time, scored against their ground truths."""

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        truths: Sequence[str],
        processor: Any,
        *,
        batch_size: int,
        generating: Generating = evaluation_mode,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._rows = list(zip(rows, truths, strict=True))
        self._processor = processor
        self._pixels = PixelCache(processor)
        self._batch_size = batch_size
        self._generating = generating
        self._should_stop = should_stop
        self.max_new_tokens = min(max(map(_answer_tokens, rows), default=0) + SPARE_TOKENS, LONGEST_ANSWER)

    def __call__(self, model: Any) -> dict[str, float]:
        """`eval_exact_match` and `eval_token_f1`, means over the rows between 0 and 1; nothing when stopped."""
        pairs: list[tuple[str, str]] = []
        with self._generating(model):
            for start in range(0, len(self._rows), self._batch_size):
                if self._should_stop():
                    return {}
                batch = self._rows[start : start + self._batch_size]
                texts = self._answer(model, [row for row, _ in batch])
                pairs += [(text, truth) for text, (_, truth) in zip(texts, batch, strict=True)]
        if not pairs:
            return {}
        return {
            "eval_exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
            "eval_token_f1": sum(token_scores(*pair).f1 for pair in pairs) / len(pairs),
        }

    def _answer(self, model: Any, rows: Sequence[EncodedRow]) -> list[str]:
        tokenizer = self._processor.tokenizer
        batch = build_batch(
            [_prompt(row) for row in rows],
            self._pixels,
            image_token_id=self._processor.image_token_id,
            pad_token_id=tokenizer.pad_token_id,
            padding_side="left",
            with_labels=False,
        )
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        request = DecodingRequest(GenerationParams(max_new_tokens=self.max_new_tokens, do_sample=False))
        own = model.generation_config.eos_token_id
        end_ids = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        decoded = decode_batch(model.generate, inputs, [request] * len(rows), tokenizer=tokenizer, end_ids=end_ids)
        for row in decoded:
            if row.error is not None:
                raise row.error
        return [row.text for row in decoded]


def _prompt(row: EncodedRow) -> EncodedRow:
    """The row up to the assistant's turn."""
    length = next((place for place, label in enumerate(row.labels) if label != IGNORED), len(row.labels))
    return EncodedRow(row.index, row.input_ids[:length], row.labels[:length], row.image_paths)
