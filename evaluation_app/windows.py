"""The rows of a run that have no sample yet, a window at a time, so that a run of any size takes bounded memory."""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing

from datasets_app.preparation import PreparedRow, iter_prepared
from datasets_app.selectors import iter_rows
from evaluation_app.models import EvaluationRun

# Rows are sorted by length within a window, so large windows pad little; the images of one more are fetched meanwhile.
WINDOW_ROWS = 1024
# The model waits for the first one.
FIRST_WINDOW_ROWS = 256
WINDOW_CHARS = 16_000_000
STORED_BLOCK = 4096

ShouldStop = Callable[[], bool]


class MissingRows(Container[int]):
    """The rows in scope without a sample; what is stored is read a block of row numbers at a time."""

    def __init__(self, run: EvaluationRun, scope: Sequence[int]) -> None:
        self.run = run
        self.scope = scope
        self.resumed = run.samples.exists()
        self.block = -1
        self.stored: frozenset[int] = frozenset()

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, int) or index not in self.scope:
            return False
        if not self.resumed:
            return True
        if index // STORED_BLOCK != self.block:
            self._read(index // STORED_BLOCK)
        return index not in self.stored

    def _read(self, block: int) -> None:
        self.block = block
        found = self.run.samples.filter(index__gte=block * STORED_BLOCK, index__lt=(block + 1) * STORED_BLOCK)
        self.stored = frozenset(found.values_list("index", flat=True))


def iter_windows(
    run: EvaluationRun,
    scope: Sequence[int],
    *,
    should_stop: ShouldStop,
    lost: Counter[str],
    on_row: Callable[[int], None],
) -> Iterator[list[PreparedRow]]:
    """The missing rows in dataset order, images resolved; a stop ends it early, the caller asks `should_stop` itself.

    `on_row` gets the number of rows that are ready.
    """
    rows = iter_prepared(
        dataset=run.dataset,
        mapping=run.mapping,
        limit=scope[-1] + 1 if scope else 0,
        should_stop=should_stop,
        indices=MissingRows(run, scope),
        lost=lost,
        ahead=WINDOW_ROWS,
    )
    window: list[PreparedRow] = []
    chars, wanted = 0, FIRST_WINDOW_ROWS
    with closing(rows):
        for ready, row in enumerate(rows, 1):
            window.append(row)
            chars += len(row.resolved.conversation.prompt) + len(row.resolved.conversation.ground_truth)
            on_row(ready)
            if len(window) >= wanted or chars >= WINDOW_CHARS:
                yield window
                window, chars, wanted = [], 0, WINDOW_ROWS
        if window and not should_stop():
            yield window


def iter_ground_truths(run: EvaluationRun, scope: Sequence[int]) -> Iterator[str]:
    """The ground truths of the rows in scope, from that column alone."""
    column = run.mapping.ground_truth_column or run.mapping.response_column
    rows = iter_rows(dataset=run.dataset, limit=scope[-1] + 1 if scope else 0, columns=[column])
    return (row[column] for index, row in rows if index in scope)
