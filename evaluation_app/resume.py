"""Takes up an interrupted run where it stopped: the same run, its samples kept, only the missing rows computed."""

from dataclasses import dataclass

from django.db import transaction
from django.utils import timezone

from evaluation_app.models import EvaluationRun
from evaluation_app.services import publish_status, waiting_position
from ftproject.core.errors import ConflictError
from ftproject.core.jobs import enqueue_job, reopen_job


@dataclass(frozen=True)
class Resumability:
    """Whether a run can be resumed, and why not or from where."""

    can_resume: bool
    reason: str


def judge_resume(run: EvaluationRun) -> Resumability:
    """What a resume would find; looks at files, not at the model's weights (the run itself does that)."""
    if run.status == EvaluationRun.Status.COMPLETED:
        return Resumability(False, "It is completed: every row has its sample.")
    if not run.is_terminal:
        return Resumability(False, f"It has not ended: it is {run.status}.")
    if not run.dataset.table_path.exists():
        return Resumability(False, f"The rows of {run.dataset.filename!r} are gone from the data directory.")
    if run.adapter is not None and not run.adapter.path.is_dir():
        return Resumability(False, f"The folder of adapter {run.adapter.name!r} is gone.")
    total = "all" if run.total is None else run.total
    return Resumability(True, f"It goes on after {run.current} of {total} rows.")


def resume_evaluation(*, run: EvaluationRun, idempotency_key: str | None = None) -> tuple[EvaluationRun, int | None]:
    """The run, waiting again at the end of the queue, and its place there; the same key once more changes nothing."""
    if idempotency_key and run.resume_key == idempotency_key:
        return run, waiting_position(run)
    found = judge_resume(run)
    if not found.can_resume:
        raise not_resumable(run, found.reason)
    with transaction.atomic():
        if not reopen_job(
            run,
            message=f"Waiting for the queue, to go on after {run.current} rows",
            reopened_at=timezone.now(),
            resume_key=idempotency_key or None,
            eta_seconds=None,
        ):
            raise not_resumable(run, "Another request resumed it at the same moment.")
        enqueue_job(run)
        publish_status(run)
        return run, waiting_position(run)


def not_resumable(run: EvaluationRun, reason: str) -> ConflictError:
    return ConflictError(
        f"Evaluation run {run.pk} cannot be resumed. {reason}",
        code="not_resumable",
        hint=f"GET /api/evaluation/runs/{run.pk} shows its state; start a new run with POST /api/evaluation/run.",
    )
