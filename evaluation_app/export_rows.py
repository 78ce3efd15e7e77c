"""The rows of an export: the dataset's own beside their samples, in dataset order and bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.db.models import QuerySet

from datasets_app.selectors import iter_rows
from evaluation_app.models import EvaluationRun, Sample

LARGEST_PAGE = 5_000
# Where a page ends earlier: prompts may be megabytes long.
PAGE_CHARACTERS = 2 * 1024 * 1024
FETCHED_AT_ONCE = 50

Row = dict[str, str]


class ExportBrokenOffError(RuntimeError):
    """The run was deleted while it was read: the connection is cut, so that nobody takes a part for the whole."""


def iter_values(run: EvaluationRun, fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Row number and fields of every sample in dataset order."""
    samples = Sample.objects.filter(run=run).order_by("index").values_list("index", *fields)
    return _paged(samples, lambda values: values[0], lambda values: sum(len(v) for v in values if isinstance(v, str)))


def iter_samples(run: EvaluationRun) -> Iterator[Sample]:
    """The same as whole samples."""
    samples = Sample.objects.filter(run=run).order_by("index")
    return _paged(
        samples, lambda one: one.index, lambda one: len(one.prompt) + len(one.ground_truth) + len(one.prediction)
    )


def _paged(
    samples: QuerySet[Any, Any], index_of: Callable[[Any], int], characters_of: Callable[[Any], int]
) -> Iterator[Any]:
    """A page a query: a cursor that stays open would pin SQLite's log, or a transaction, while a slow client reads."""
    last = -1
    while page := _page(samples.filter(index__gt=last)[:LARGEST_PAGE], characters_of):
        yield from page
        last = index_of(page[-1])


def _page(samples: QuerySet[Any, Any], characters_of: Callable[[Any], int]) -> list[Any]:
    page, characters = [], 0
    for one in samples.iterator(chunk_size=FETCHED_AT_ONCE):
        page.append(one)
        characters += characters_of(one)
        if characters >= PAGE_CHARACTERS:
            break
    return page


def iter_row_values(run: EvaluationRun, fields: Sequence[str]) -> Iterator[tuple[Row, tuple[Any, ...]]]:
    """Each dataset row that the run covers, and (row number, fields) of its sample."""
    samples = iter_values(run, fields)
    following, found = next(samples, None), 0
    for index, row in iter_rows(dataset=run.dataset):
        if following is None:
            break
        if following[0] == index:
            yield row, following
            following, found = next(samples, None), found + 1
    check_whole(run, found)


class SampleCursor:
    """Walks one run's samples beside the dataset's rows."""

    def __init__(self, run: EvaluationRun) -> None:
        self.run = run
        self.samples = iter_samples(run)
        self.following = next(self.samples, None)
        self.taken = 0

    def take(self, index: int) -> Sample | None:
        """The sample of this row, if the run has one; rows must be asked for in ascending order."""
        sample = self.following
        if sample is None or sample.index != index:
            return None
        self.following, self.taken = next(self.samples, None), self.taken + 1
        return sample


def iter_row_samples(runs: Sequence[EvaluationRun]) -> Iterator[tuple[Row, list[Sample | None]]]:
    """Each dataset row that any of the runs covers, in dataset order, with the sample of each run."""
    cursors = [SampleCursor(run) for run in runs]
    for index, row in iter_rows(dataset=runs[0].dataset):
        if all(cursor.following is None for cursor in cursors):
            break
        found = [cursor.take(index) for cursor in cursors]
        if any(found):
            yield row, found
    for cursor in cursors:
        check_whole(cursor.run, cursor.taken)


def check_whole(run: EvaluationRun, found: int) -> None:
    """`num_samples` is set when a run is completed, and never changes."""
    if run.num_samples is not None and found != run.num_samples:
        raise ExportBrokenOffError(
            f"{found} of {run.num_samples} samples of evaluation run {run.pk} were found: it was deleted meanwhile"
        )
