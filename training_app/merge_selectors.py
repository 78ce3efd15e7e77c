"""Reads of merges."""

from ftproject.core.errors import NotFoundError
from ftproject.core.pagination import Page
from training_app.configuration import LARGEST_ID
from training_app.models import AdapterMerge


def get_merge(*, merge_id: int) -> AdapterMerge:
    merge = AdapterMerge.objects.filter(pk=merge_id).first() if 0 < merge_id <= LARGEST_ID else None
    if merge is None:
        hint = "GET /api/training/merges lists them."
        raise NotFoundError(f"There is no merge {merge_id}.", code="merge_not_found", hint=hint)
    return merge


def list_merges(*, page: int, page_size: int) -> tuple[Page, list[AdapterMerge]]:
    """One page of all merges, newest first."""
    merges = AdapterMerge.objects.order_by("-id")
    where = Page(page, page_size, merges.count())
    return where, list(merges[where.offset : where.offset + page_size])
