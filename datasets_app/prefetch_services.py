"""Writes of prefetch runs: start and stop."""

from django.db import transaction

from datasets_app.models import ImagePrefetch
from datasets_app.selectors import require_ready_dataset
from ftproject.core.errors import ConflictError
from ftproject.core.jobs import enqueue_job, must_wait, queue_position, stop_job


def prefetch_start(*, dataset_id: int | None = None, retry_failed: bool = False) -> tuple[ImagePrefetch, int | None]:
    """A queued run and its place in the light lane, None when it starts at once."""
    dataset, mapping = require_ready_dataset(dataset_id=dataset_id)
    if not mapping.image_url_columns:
        raise ConflictError(
            "The column mapping names no image column: there is nothing to fetch.",
            code="no_image_columns",
            hint="Name them in image_url_columns: POST /api/datasets/mapping.",
        )
    with transaction.atomic():
        run = ImagePrefetch.objects.create(
            dataset=dataset,
            mapping=mapping,
            retry_failed=retry_failed,
            total=dataset.num_rows,
            message="Waiting for its turn",
        )
        enqueue_job(run)
        return run, queue_position(run) if must_wait(run) else None


def prefetch_stop(*, run: ImagePrefetch) -> ImagePrefetch:
    """Stops a running one (what it fetched stays), or takes a waiting one out of the queue."""
    if run.status == ImagePrefetch.Status.STOPPING:
        return run
    stopped = stop_job(run, reason="Stop requested: what was fetched stays in the cache")
    assert isinstance(stopped, ImagePrefetch)  # noqa: S101 - stop_job answers with the same model
    return stopped
