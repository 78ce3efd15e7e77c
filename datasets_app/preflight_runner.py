"""What a preflight's run process does: looks at every row, says how far it is, and leaves the report on the row."""

import time
from collections.abc import Callable

from datasets_app.models import PreflightRun
from datasets_app.preflight.port import training
from datasets_app.preflight.report import StoppedError, make_report
from ftproject.core.errors import ConflictError
from ftproject.core.events import publish
from ftproject.core.jobs import Job, requeue_job
from ftproject.core.tasks import is_draining

REPORT_SECONDS = 0.5


def execute_preflight(job: PreflightRun, should_stop: Callable[[], bool]) -> None:
    """Makes the report; a stop leaves none, a shutdown puts the run back into the queue."""
    job.advance(Job.Status.WORKING, message="Looking at the rows", current_row=0)
    progress = ProgressReporter(job)
    try:
        report = make_report(
            dataset=job.dataset,
            mapping=job.mapping,
            plan=training().plan(job.config),
            should_stop=should_stop,
            on_progress=progress.on_progress,
        )
    except StoppedError as exc:
        if is_draining() and requeue_job(job, message="Interrupted by a shutdown"):
            return
        total = job.dataset.num_rows
        raise ConflictError(f"Stopped after {exc.rows} of {total} rows: no report was made.", code="stopped") from None
    progress.tell(job.dataset.num_rows)
    job.finish(Job.Status.COMPLETED, message="Completed", report=report, warnings=report["warnings"])


class ProgressReporter:
    """Writes the place in the dataset onto the row and into the event table, twice a second."""

    def __init__(self, job: PreflightRun) -> None:
        self.job = job
        self.total = job.dataset.num_rows
        self.told_at = time.monotonic()

    def on_progress(self, current: int) -> None:
        if current % 64 == 0 and time.monotonic() - self.told_at >= REPORT_SECONDS:
            self.tell(current)

    def tell(self, current: int) -> None:
        self.told_at = time.monotonic()
        self.job.note(current_row=current)
        publish(
            "preflight_progress",
            {"run_id": self.job.pk, "current": current, "total": self.total},
            run_kind=self.job.KIND,
            run_id=self.job.pk,
        )
