"""Generates answers for many rows: batches of similar length, halved when memory runs out, never changing a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ftproject.engine.backends.base import EngineError, Generation, LoadedModel, RowError, SkippedRow
from ftproject.engine.configs import GenerationParams
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.models import is_out_of_memory

BatchDone = Callable[[list[tuple[ResolvedConversation, Generation]]], None]


@dataclass
class EvaluationOutcome:
    """What became of the rows: how many answered, which could not, and whether the run was stopped."""

    answered: int = 0
    failed: list[SkippedRow] = field(default_factory=list)
    stopped: bool = False
    smallest_batch: int = 0


def evaluate_rows(
    model: LoadedModel,
    rows: Sequence[ResolvedConversation],
    params: GenerationParams,
    *,
    adapter: Path | None,
    batch_size: int,
    on_batch: BatchDone,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvaluationOutcome:
    """Answers every row and hands each finished batch to `on_batch`, longest rows first.

    Batches hold rows of similar length, so little is padded; the longest come first, so a batch that does not fit
    in memory fails at once. It is then halved, and the size stays halved. While a batch is generated, a thread
    prepares the next one's images. A row that cannot be answered (unreadable image, too long) is reported in
    `failed` and stops nothing. Raises EngineError out_of_memory when a single row does not fit.
    """
    outcome = EvaluationOutcome(smallest_batch=batch_size)
    order = sorted(rows, key=_length, reverse=True)
    with ThreadPoolExecutor(max_workers=1) as preparer:
        start = 0
        while start < len(order):
            if should_stop():
                outcome.stopped = True
                break
            size = outcome.smallest_batch
            batch, coming = order[start : start + size], order[start + size : start + 2 * size]
            prepared = preparer.submit(model.preload, coming, adapter=adapter)
            done = _answer(model, batch, params, adapter, outcome)
            prepared.result()
            on_batch(done)
            outcome.answered += len(done)
            start += len(batch)
    return outcome


def _length(row: ResolvedConversation) -> tuple[int, int, int]:
    """What decides a row's token count, cheaply; the index makes the order the same in every run."""
    conversation = row.conversation
    return len(row.image_paths), len(conversation.prompt), -conversation.index


def _answer(
    model: LoadedModel,
    batch: Sequence[ResolvedConversation],
    params: GenerationParams,
    adapter: Path | None,
    outcome: EvaluationOutcome,
) -> list[tuple[ResolvedConversation, Generation]]:
    """The batch's answers; split in halves on lack of memory, row by row when one of its rows is unusable."""
    try:
        return list(zip(batch, model.generate(batch, params, adapter=adapter), strict=True))
    except RowError as error:
        if len(batch) == 1:
            outcome.failed.append(SkippedRow(batch[0].conversation.index, error.message))
            return []
        half = (len(batch) + 1) // 2
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            index = batch[0].conversation.index
            raise EngineError("out_of_memory", f"row {index} alone does not fit into memory") from error
        half = (len(batch) + 1) // 2
        outcome.smallest_batch = min(outcome.smallest_batch, half)
    _free_memory()
    parts = (batch[:half], batch[half:])
    return [answer for part in parts for answer in _answer(model, part, params, adapter, outcome)]


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
