"""Reads of prefetch runs and of the images that they could not get."""

import csv
import io
from collections.abc import Iterator

from django.db.models import QuerySet

from datasets_app.models import BadImage, ImagePrefetch
from ftproject.core.errors import NotFoundError
from ftproject.core.formula_escape import escape_formula
from ftproject.core.pagination import Page

BAD_ROW_FIELDS = ("index", "column", "url", "code", "message")
CSV_PAGE = 500


def list_prefetches(*, dataset_id: int | None = None) -> QuerySet[ImagePrefetch]:
    """Newest first."""
    runs = ImagePrefetch.objects.order_by("-id")
    return runs if dataset_id is None else runs.filter(dataset_id=dataset_id)


def page_of_prefetches(*, dataset_id: int | None, page: int, page_size: int) -> tuple[Page, list[ImagePrefetch]]:
    runs = list_prefetches(dataset_id=dataset_id)
    shown = Page(page, page_size, runs.count())
    return shown, list(runs[shown.offset : shown.offset + page_size])


def get_prefetch(*, run_id: int) -> ImagePrefetch:
    run = ImagePrefetch.objects.filter(pk=run_id).first()
    if run is None:
        raise NotFoundError(
            f"There is no prefetch run {run_id}.",
            code="run_not_found",
            hint="GET /api/datasets/images/prefetch lists every run.",
        )
    return run


def page_of_bad_images(*, run: ImagePrefetch, page: int, page_size: int) -> tuple[Page, list[BadImage]]:
    """In the order of the rows."""
    shown = Page(page, page_size, run.bad_images.count())
    return shown, list(run.bad_images.order_by("id")[shown.offset : shown.offset + page_size])


def bad_rows_csv(*, run: ImagePrefetch) -> Iterator[str]:
    """A line per image that failed, a page a query; what a spreadsheet would run as a formula is escaped."""
    yield _csv_text([BAD_ROW_FIELDS])
    last = 0
    while rows := list(run.bad_images.filter(pk__gt=last).order_by("pk")[:CSV_PAGE]):
        last = rows[-1].pk
        yield _csv_text([tuple(escape_formula(str(getattr(row, name))) for name in BAD_ROW_FIELDS) for row in rows])


def _csv_text(lines: list[tuple[str, ...]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(lines)
    return buffer.getvalue()
