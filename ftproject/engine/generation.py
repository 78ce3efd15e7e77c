"""Generates answers for many rows: batches of similar length, sized by memory, never changing a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ftproject.engine.backends.base import Backend, EngineError, Generation, LoadedModel, RowError, SkippedRow
from ftproject.engine.configs import GenerationParams
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.models import is_out_of_memory

# So many whole batches after one that did not fit, a batch of twice the size is tried again; each failure doubles it.
PATIENCE = 8
LONGEST_PATIENCE = 128
# On a CPU reading the prompts is the greater part and computing-bound: beyond this a batch pads more and leaves the
# processor's caches (500 mixed rows of 17 to 167 tokens: 1.05 cpu s with 2,048 and 3,072, 1.20 with 8,192).
PROMPT_TOKENS_ON_CPU = 3072

Answers = list[tuple[ResolvedConversation, Generation]]
BatchDone = Callable[[Answers], None]
RowFailed = Callable[[ResolvedConversation, str], None]


@dataclass
class EvaluationOutcome:
    """What became of the rows: how many answered, which could not, and whether the run was stopped.

    `smallest_batch` is the fewest rows that a batch was cut down to for lack of memory.
    """

    answered: int = 0
    failed: list[SkippedRow] = field(default_factory=list)
    stopped: bool = False
    smallest_batch: int = 0
    out_of_memory: int = 0


class BatchSize:
    """How many rows the next batch takes: at most `rows`, and at most `tokens` with padding and answers counted.

    `prompt_tokens` bounds the padded prompts alone, where more at once would only cost.

    What does not fit into memory is halved. After some whole batches that fit, the size doubles again, up to where
    it began: memory that another program held for a moment must not slow the rest of a night. Each try that fails
    doubles the wait, so what never fits costs little.
    """

    def __init__(self, rows: int, tokens: int | None = None, prompt_tokens: int | None = None) -> None:
        self.rows = rows
        self.tokens = tokens
        self.prompt_tokens = prompt_tokens
        self._ceiling = tokens
        self._fitted = 0
        self._grown = False
        self._patience = PATIENCE

    def take(self, longest: int, new_tokens: int) -> int:
        """How many rows of at most `longest` tokens the next batch takes; at least one."""
        limits = [self.rows]
        if self.tokens is not None:
            limits.append(self.tokens // (longest + new_tokens))
        if self.prompt_tokens is not None and longest:
            limits.append(self.prompt_tokens // longest)
        return max(1, min(limits))

    def failed(self, rows: int, longest: int) -> None:
        """A batch of so many tokens did not fit."""
        self._ceiling = self._ceiling or self.rows * longest
        self.tokens = max(1, rows * longest // 2)
        if self._grown:
            self._patience = min(2 * self._patience, LONGEST_PATIENCE)
        self._fitted, self._grown = 0, False

    def fitted(self, rows: int, longest: int) -> None:
        """A batch fitted; it counts when it was as large as allowed."""
        if self.tokens is None or self.tokens == self._ceiling or (rows + 1) * longest <= self.tokens:
            return
        self._fitted += 1
        if self._fitted >= self._patience:
            self._fitted, self._grown = 0, True
            self.tokens = min(2 * self.tokens, self._ceiling or 2 * self.tokens)


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
    """Answers every row of a list, see `answer_windows`; rows that cannot be answered are in `failed`."""
    failed: list[SkippedRow] = []
    outcome = answer_windows(
        model,
        [rows],
        params,
        adapter=adapter,
        batch_size=batch_size,
        on_batch=on_batch,
        on_failed=lambda row, reason: failed.append(SkippedRow(row.conversation.index, reason)),
        should_stop=should_stop,
    )
    outcome.failed = failed
    return outcome


def answer_windows(
    model: LoadedModel,
    windows: Iterable[Sequence[ResolvedConversation]],
    params: GenerationParams,
    *,
    adapter: Path | None,
    batch_size: int,
    on_batch: BatchDone,
    on_failed: RowFailed,
    should_stop: Callable[[], bool] = lambda: False,
) -> EvaluationOutcome:
    """Answers the rows of each window, longest first, and hands every finished batch to `on_batch`.

    Batches hold rows of similar length, so little is padded, and at most `batch_size` rows and the tokens that
    memory holds. The longest come first, so a batch that does not fit fails early; it is halved (`BatchSize`). While
    a batch is generated, a thread prepares the next one's images. A row that cannot be answered (unreadable image,
    too long, too large for memory on its own) is handed to `on_failed` and stops nothing. Only one window is held.
    """
    size = BatchSize(batch_size, model.batch_tokens(), PROMPT_TOKENS_ON_CPU if model.device == "cpu" else None)
    answering = Answering(model, params, adapter, size, on_batch, on_failed)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="preload") as preparer:
        for window in windows:
            if not answering.answer(window, preparer, should_stop):
                answering.outcome.stopped = True
                break
    return answering.outcome


class Answering:
    """The state of one run over its windows."""

    def __init__(
        self,
        model: LoadedModel,
        params: GenerationParams,
        adapter: Path | None,
        size: BatchSize,
        on_batch: BatchDone,
        on_failed: RowFailed,
    ) -> None:
        self.model, self.params, self.adapter, self.size = model, params, adapter, size
        self.on_batch, self.on_failed = on_batch, on_failed
        self.outcome = EvaluationOutcome(smallest_batch=size.rows)

    def answer(
        self, window: Sequence[ResolvedConversation], preparer: ThreadPoolExecutor, should_stop: Callable[[], bool]
    ) -> bool:
        """False when a stop came before the window's last batch."""
        lengths = self.model.prompt_lengths(window, adapter=self.adapter)
        # The index makes the order the same in every run.
        order = sorted(range(len(window)), key=lambda place: (-lengths[place], window[place].conversation.index))
        rows, sizes = [window[place] for place in order], [lengths[place] for place in order]
        # Rows without a length cannot be encoded: on its own such a row spoils no batch.
        usable = len(sizes) - sizes.count(0)
        for row in rows[usable:]:
            self._hand_over(self._batch([row], 0))
        rows, start = rows[:usable], 0
        while start < len(rows):
            if should_stop():
                return False
            count = self.size.take(sizes[start], self.params.max_new_tokens)
            batch, coming = rows[start : start + count], rows[start + count : start + 2 * count]
            prepared = preparer.submit(self.model.preload, coming, adapter=self.adapter)
            done = self._batch(batch, sizes[start])
            prepared.result()
            self._hand_over(done)
            start += len(batch)
        return True

    def _hand_over(self, done: Answers) -> None:
        if done:
            self.on_batch(done)
            self.outcome.answered += len(done)

    def _batch(self, batch: Sequence[ResolvedConversation], longest: int) -> Answers:
        """The batch's answers; in smaller parts on lack of memory, halved until an unusable row is found."""
        padded = longest + self.params.max_new_tokens
        try:
            answers = self.model.generate(batch, self.params, adapter=self.adapter)
        except RowError as error:
            if len(batch) == 1:
                self.on_failed(batch[0], error.message)
                return []
            smaller = (len(batch) + 1) // 2
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, EngineError) or not is_out_of_memory(error):
                raise
            self.size.failed(len(batch), padded)
            if len(batch) == 1:
                self._does_not_fit(batch[0])
                return []
            smaller = len(batch) // 2
            self.outcome.smallest_batch = min(self.outcome.smallest_batch, smaller)
        else:
            self.size.fitted(len(batch), padded)
            return list(zip(batch, answers, strict=True))
        free_memory()
        return self._parts(batch, longest, smaller)

    def _parts(self, batch: Sequence[ResolvedConversation], longest: int, count: int) -> Answers:
        """The batch in parts of `count` rows, fewer where memory turns out to hold fewer."""
        answers: Answers = []
        while batch:
            now = min(count, self.size.take(longest, self.params.max_new_tokens))
            answers += self._batch(batch[:now], longest)
            batch = batch[now:]
        return answers

    def _does_not_fit(self, row: ResolvedConversation) -> None:
        self.outcome.out_of_memory += 1
        self.on_failed(row, "the row does not fit into memory, not even alone: lower max_pixels or max_new_tokens")


def import_libraries(backend: Backend) -> None:
    """Imports what the plain backend loads a model with; may run in a thread while something else is prepared.

    Unsloth is left alone: what it patches depends on the order of imports.
    """
    if backend.name == "transformers":
        import peft  # noqa: F401
        import transformers.models.qwen3_vl.modeling_qwen3_vl  # noqa: F401


def free_memory() -> None:
    """Gives cached device memory back; outside the except block, whose traceback still holds the failed tensors."""
    import gc

    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
