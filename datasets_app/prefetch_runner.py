"""Executes a prefetch in its run process: every image of the dataset into the cache, the bad ones listed by row."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from django.db import transaction

from datasets_app.models import BadImage, ImagePrefetch
from datasets_app.preparation import ImageResolver, PendingImage, PendingRow, arrived
from datasets_app.selectors import iter_rows, row_mapping
from ftproject.core.events import publish
from ftproject.core.jobs import Job, requeue_job
from ftproject.core.tasks import is_draining
from ftproject.engine.conversations import RowMapping

REPORT_SECONDS = 0.5
# A list that nobody can read must not fill the disk; `num_failed` counts on.
MAX_LISTED = 100_000
SHOWN_CELL = 2000


class ClaimLostError(RuntimeError):
    """The run was ended or taken over elsewhere."""


def execute_prefetch(job: ImagePrefetch, should_stop: Callable[[], bool]) -> None:
    """Fetches what the cache lacks; a shutdown puts the run back into the queue, a stop keeps what is there."""
    ended = PrefetchProgress(job).run(should_stop)
    if ended:
        job.finish(Job.Status.COMPLETED, message="Completed")
    elif not (is_draining() and requeue_job(job, message="Interrupted by a shutdown")):
        message = f"Stopped after {job.current} of {job.total} rows"
        job.finish(Job.Status.COMPLETED, message=message, stopped_early=True)


class PrefetchProgress:
    """Counts rows and images, and writes them down often enough to watch."""

    def __init__(self, job: ImagePrefetch) -> None:
        self.job = job
        self.rows = self.images = self.failed = self.listed = 0
        self.bad: list[BadImage] = []
        self.said_at = 0.0

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """False when a stop came first."""
        job, rules = self.job, row_mapping(self.job.mapping)
        job.bad_images.all().delete()  # of an attempt that a shutdown interrupted
        total = job.dataset.num_rows
        if not job.advance(Job.Status.WORKING, message="Fetching images", total=total):
            return False
        source = iter_rows(dataset=job.dataset, columns=columns_of(rules))
        with ImageResolver(job.dataset, retry_failed=job.retry_failed) as resolver:
            for pending in resolver.in_order(source, rules):
                if not arrived(pending, should_stop):
                    break
                self.add(pending)
        self.report()
        return self.rows == total

    def add(self, pending: PendingRow) -> None:
        self.rows += 1
        self.images += len(pending.images)
        for image in pending.images:
            self.look_at(pending.index, image)
        if time.monotonic() - self.said_at >= REPORT_SECONDS:
            self.report()

    def look_at(self, index: int, image: PendingImage) -> None:
        outcome = image.outcome.result()
        if isinstance(outcome, Path):
            return
        self.failed += 1
        if self.listed < MAX_LISTED:
            self.listed += 1
            url = image.cell[:SHOWN_CELL]
            bad = BadImage(run=self.job, index=index, column=image.column, url=url)
            bad.code, bad.message = outcome.code, outcome.message
            self.bad.append(bad)

    def report(self) -> None:
        self.said_at = time.monotonic()
        with transaction.atomic():
            BadImage.objects.bulk_create(self.bad, batch_size=500)
            counts = {"current": self.rows, "num_images": self.images, "num_failed": self.failed}
            if not self.job.note(**counts):
                raise ClaimLostError(f"{self.job.name} is no longer ours")
            publish_progress(self.job)
        self.bad = []


def publish_progress(job: ImagePrefetch) -> None:
    say = partial(publish, run_kind=job.KIND, run_id=job.pk)
    ready = job.num_images - job.num_failed
    say(
        "prefetch_progress",
        {"run_id": job.pk, "current": job.current, "total": job.total, "ready": ready, "failed": job.num_failed},
    )


def columns_of(rules: RowMapping) -> list[str]:
    """What `build_conversation` reads of a row."""
    named = [rules.prompt_column, rules.response_column, *rules.image_url_columns, *rules.mandatory_columns]
    return list(dict.fromkeys([*named, *filter(None, [rules.ground_truth_column])]))
