"""The rows of an export: the dataset's own beside their samples, in dataset order and bounded memory."""

from collections.abc import Iterator, Sequence
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
    """Row number and fields of every sample in dataset order.

    A page a query: a cursor that stays open would pin SQLite's log, or a transaction, while a slow client reads.
    """
    samples = Sample.objects.filter(run=run).order_by("index").values_list("index", *fields)
    last = -1
    while page := _page(samples.filter(index__gt=last)[:LARGEST_PAGE]):
        yield from page
        last = page[-1][0]


def _page(samples: QuerySet[Any, Any]) -> list[tuple[Any, ...]]:
    page, characters = [], 0
    for values in samples.iterator(chunk_size=FETCHED_AT_ONCE):
        page.append(values)
        characters += sum(len(value) for value in values if isinstance(value, str))
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


def check_whole(run: EvaluationRun, found: int) -> None:
    """`num_samples` is set when a run is completed, and never changes."""
    if run.num_samples is not None and found != run.num_samples:
        raise ExportBrokenOffError(
            f"{found} of {run.num_samples} samples of evaluation run {run.pk} were found: it was deleted meanwhile"
        )
