"""Reads of evaluation runs and their samples."""

from typing import Any

from django.db.models import QuerySet

from evaluation_app.models import EvaluationRun
from ftproject.core.errors import ConflictError, NotFoundError
from ftproject.core.jobs import queue_position


def list_runs(*, include_unfinished: bool = False) -> QuerySet[EvaluationRun]:
    """Newest first; finished ones only, because clients wait until a new run appears here."""
    runs = EvaluationRun.objects.select_related("adapter", "split_adapter", "dataset").order_by("-id")
    return runs if include_unfinished else runs.filter(status=EvaluationRun.Status.COMPLETED)


def get_run(*, run_id: int) -> EvaluationRun:
    run = list_runs(include_unfinished=True).select_related("mapping").filter(pk=run_id).first()
    if run is None:
        raise NotFoundError(
            f"There is no evaluation run {run_id}.",
            code="run_not_found",
            hint="GET /api/evaluation/runs?status=all lists every run.",
        )
    return run


def current_run() -> EvaluationRun | None:
    """What the status route shows: the running run, else the next waiting one, else the newest."""
    runs = EvaluationRun.objects.order_by("-id")
    active = runs.filter(status__in=EvaluationRun.ACTIVE).first()
    return active or runs.filter(status=EvaluationRun.Status.QUEUED).last() or runs.first()


def get_evaluation_status() -> dict[str, Any]:
    """What `GET /api/evaluation/status` shows; `idle` and nulls before the first run."""
    run = current_run()
    if run is None:
        nothing = dict.fromkeys(("model_type", "run_id", "current", "total", "eta", "queue_position", "error"))
        return {"running": False, "status": "idle", "message": "No evaluation was ever started.", **nothing}
    return {
        "running": not run.is_terminal,
        "model_type": run.model_type,
        "run_id": run.pk,
        "status": run.status,
        "current": run.current,
        "total": run.total,
        "eta": run.eta_seconds,
        "queue_position": queue_position(run) if run.status == run.Status.QUEUED else None,
        "message": run.message,
        "error": run.error,
    }


def get_exportable_run(*, run_id: int) -> EvaluationRun:
    run = get_run(run_id=run_id)
    if run.status != EvaluationRun.Status.COMPLETED:
        raise ConflictError(
            f"Evaluation run {run_id} is {run.status}, not completed: its export would lack rows.",
            code="run_not_finished",
            hint=f"Wait until it is completed; what there is so far: GET /api/evaluation/runs/{run_id}/samples.",
        )
    return run
