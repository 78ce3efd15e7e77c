"""Writes of evaluation: start, stop and delete runs."""

import hashlib
import json
import logging
import shutil
from dataclasses import asdict

from django.db import IntegrityError, transaction

from evaluation_app.models import EvaluationRun
from evaluation_app.plans import EvaluationRequest, plan_run
from evaluation_app.selectors import current_run
from ftproject.core.errors import ConflictError
from ftproject.core.events import publish
from ftproject.core.jobs import enqueue_job, find_idempotent, must_wait, queue_position, stop_job
from ftproject.core.models import Event
from ftproject.core.storage import log_path, run_dir

logger = logging.getLogger(__name__)


def start_evaluation(
    *, request: EvaluationRequest, idempotency_key: str | None = None
) -> tuple[EvaluationRun, int | None]:
    """A queued run and its queue position, None when it starts at once; the same key and body give the same run."""
    digest = hash_request(request)
    if earlier := find_earlier_run(idempotency_key, digest):
        return earlier
    # Planning may read a whole column: not in a transaction, which on SQLite would keep every other writer out.
    run = plan_run(request)
    run.idempotency_key, run.request_sha256 = idempotency_key or None, digest
    try:
        with transaction.atomic():
            return queue_run(run)
    except IntegrityError:  # the same key came in twice at once, and the other request was first
        if earlier := find_earlier_run(idempotency_key, digest):
            return earlier
        raise


def hash_request(request: EvaluationRequest) -> str:
    return hashlib.sha256(json.dumps(asdict(request), sort_keys=True, default=str).encode()).hexdigest()


def find_earlier_run(key: str | None, digest: str) -> tuple[EvaluationRun, int | None] | None:
    run = find_idempotent(EvaluationRun, key, digest)
    return (run, waiting_position(run)) if isinstance(run, EvaluationRun) else None


def queue_run(run: EvaluationRun) -> tuple[EvaluationRun, int | None]:
    run.message = "Waiting for the queue"
    run.save()
    enqueue_job(run)
    publish_status(run)
    return run, waiting_position(run)


def waiting_position(run: EvaluationRun) -> int | None:
    """The queue place of a run that must wait; read before the commit, after which the worker may have it already."""
    if run.status != EvaluationRun.Status.QUEUED or not must_wait(run):
        return None
    return queue_position(run)


def publish_status(run: EvaluationRun) -> None:
    publish(
        "eval_status",
        {"run_id": run.pk, "status": run.status, "message": run.message, "model_type": run.model_type},
        run_kind=run.KIND,
        run_id=run.pk,
    )


def stop_evaluation(*, run: EvaluationRun) -> EvaluationRun:
    """Stops a running run after its current batch, or takes a waiting one out of the queue; its samples stay."""
    if run.status == EvaluationRun.Status.STOPPING:
        return run
    stopped = stop_job(run, reason="Stop requested: the current batch is finished and its samples kept")
    assert isinstance(stopped, EvaluationRun)  # noqa: S101 - stop_job answers with the same model
    if not stopped.is_terminal:
        publish_status(stopped)
    return stopped


def stop_current_evaluation() -> EvaluationRun:
    run = current_run()
    if run is None or run.is_terminal:
        raise ConflictError(
            "No evaluation is running or waiting.",
            code="no_active_run",
            hint="GET /api/evaluation/runs?status=all lists every run.",
        )
    return stop_evaluation(run=run)


def delete_evaluation(*, run: EvaluationRun) -> None:
    """Deletes a finished run with its samples, log and scratch files."""
    run_id = run.pk
    with transaction.atomic():
        deleted, _ = EvaluationRun.objects.filter(pk=run_id, status__in=EvaluationRun.TERMINAL).delete()
        if not deleted:
            raise run_is_active(run)
        Event.objects.filter(run_kind=EvaluationRun.KIND, run_id=run_id).delete()
    log_path(EvaluationRun.KIND, run_id).unlink(missing_ok=True)
    shutil.rmtree(run_dir(EvaluationRun.KIND, run_id), ignore_errors=True)
    logger.info("evaluation run %s deleted", run_id)


def run_is_active(run: EvaluationRun) -> ConflictError:
    return ConflictError(
        f"Evaluation run {run.pk} has not ended.",
        code="run_active",
        hint=f"POST /api/evaluation/runs/{run.pk}/stop, then delete it when it has ended.",
    )
