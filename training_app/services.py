"""Writes of training runs: plan, start, stop, delete."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from datasets_app.models import ColumnMapping, Dataset
from datasets_app.selectors import iter_rows, require_ready_dataset, row_mapping
from ftproject.core.errors import ConflictError, InvalidInputError, Problem
from ftproject.core.events import publish
from ftproject.core.jobs import Job, enqueue_job, find_idempotent, must_wait, queue_position, stop_job
from ftproject.core.models import Event
from ftproject.core.storage import log_path, run_dir
from ftproject.engine.configs import EffectiveConfig, to_dict
from ftproject.engine.conversations import build_conversation
from training_app.configuration import device_name, read_start_body, resolve_config
from training_app.disk import require_free_disk
from training_app.models import TrainingRun
from training_app.selectors import adapter_of

# Enough to notice a mapping that fits no row at all; the run itself looks at every row.
ROWS_CHECKED = 2000
REASONS_SHOWN = 5

STOP_WHILE_TRAINING = "Stop requested: the current step is finished and the adapter saved"
STOP_BEFORE_TRAINING = "Stop requested before the first step: there will be no adapter"


@dataclass(frozen=True)
class TrainingPlan:
    """A start request, checked: what would run, on which rows, where."""

    dataset: Dataset
    mapping: ColumnMapping
    effective: EffectiveConfig
    device: str
    dry_run: bool


@dataclass(frozen=True)
class StartedRun:
    """A run that was created now, or earlier under the same Idempotency-Key."""

    run: TrainingRun
    waits: bool
    position: int | None


def plan_training(*, body: Mapping[str, Any]) -> TrainingPlan:
    """Checks everything that can be known without touching the GPU; refuses what cannot work."""
    options, config = read_start_body(body)
    effective, device = resolve_config(config)
    dataset, mapping = require_ready_dataset(dataset_id=options.dataset_id)
    require_usable_row(dataset=dataset, mapping=mapping)
    require_free_disk(effective)
    return TrainingPlan(dataset, mapping, effective, device_name(device), options.dry_run)


def require_usable_row(*, dataset: Dataset, mapping: ColumnMapping) -> None:
    """Refuses a dataset of which no row can be trained on; large ones are judged by their first rows when they run."""
    columns = row_mapping(mapping)
    problems: list[Problem] = []
    for index, row in iter_rows(dataset=dataset, limit=ROWS_CHECKED):
        conversation = build_conversation(index, row, columns)
        if not conversation.skipped:
            return
        if len(problems) < REASONS_SHOWN:
            message = conversation.skipped_reason or "skipped"
            problems.append(Problem(code="row_skipped", message=message, row=index))
    if dataset.num_rows <= ROWS_CHECKED:
        raise InvalidInputError(
            f"No row of {dataset.filename} can be trained on: {problems[0].message if problems else 'it has none'}.",
            code="no_usable_rows",
            hint="Set another mapping (mandatory_columns, prompt_column), or fill the empty cells.",
            errors=problems,
        )


def start_training(*, body: Mapping[str, Any], idempotency_key: str | None = None) -> StartedRun:
    """Creates a run and queues it; the same key with the same body answers the run that is there already."""
    fingerprint = request_fingerprint(body)
    if known := find_started(idempotency_key, fingerprint):
        return known
    plan = plan_training(body=body)
    if plan.dry_run:
        raise InvalidInputError("dry_run asks to start nothing.", code="dry_run", hint="Leave dry_run out.")
    try:
        with transaction.atomic():
            return create_run(plan=plan, body=body, idempotency_key=idempotency_key, fingerprint=fingerprint)
    except IntegrityError:  # the same key came in twice at once, and the other request was first
        if known := find_started(idempotency_key, fingerprint):
            return known
        raise


def request_fingerprint(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def find_started(idempotency_key: str | None, fingerprint: str) -> StartedRun | None:
    run = find_idempotent(TrainingRun, idempotency_key, fingerprint)
    return describe_started(run) if isinstance(run, TrainingRun) else None


def create_run(
    *, plan: TrainingPlan, body: Mapping[str, Any], idempotency_key: str | None, fingerprint: str
) -> StartedRun:
    run = TrainingRun.objects.create(
        dataset=plan.dataset,
        mapping=plan.mapping,
        requested_config=dict(body),
        config=to_dict(plan.effective.config),
        model_name=plan.effective.model_name,
        device=plan.device,
        backend=plan.effective.backend,
        warnings=plan.effective.warnings,
        message="Waiting for the GPU queue",
        idempotency_key=idempotency_key,
        request_sha256=fingerprint,
    )
    enqueue_job(run)
    publish_status(run)
    return describe_started(run)


def describe_started(run: TrainingRun) -> StartedRun:
    waits = run.status == Job.Status.QUEUED and must_wait(run)
    return StartedRun(run, waits, queue_position(run) if waits else None)


def publish_status(run: TrainingRun) -> None:
    data = {"run_id": run.pk, "status": str(run.status), "message": run.message}
    publish("training_status", data, run_kind=run.KIND, run_id=run.pk)  # type: ignore[arg-type]


def stop_training(*, run: TrainingRun | None = None) -> TrainingRun:
    """Asks a run to finish its step and save, or cancels it while it waits; by default the active, else the oldest."""
    run = run or active_or_oldest_waiting()
    if run is None:
        hint = "GET /api/training/status shows the newest run."
        raise ConflictError("No training run is active or waiting.", code="no_active_run", hint=hint)
    if run.status == Job.Status.STOPPING:
        return run
    stopped = stop_job(run, reason=STOP_WHILE_TRAINING if run.status == Job.Status.TRAINING else STOP_BEFORE_TRAINING)
    assert isinstance(stopped, TrainingRun)  # noqa: S101 - narrows the type for mypy
    if not stopped.is_terminal:
        publish_status(stopped)
    return stopped


def active_or_oldest_waiting() -> TrainingRun | None:
    active = TrainingRun.objects.filter(status__in=TrainingRun.ACTIVE).first()
    return active or TrainingRun.objects.filter(status=Job.Status.QUEUED).order_by("id").first()


def delete_run(*, run: TrainingRun) -> None:
    """Removes a run that has ended and left no adapter: its row, metrics, events, log and scratch folder."""
    require_deletable(run)
    try:
        with transaction.atomic():
            gone, _ = TrainingRun.objects.filter(pk=run.pk, status__in=TrainingRun.TERMINAL).delete()
            if not gone:
                raise run_is_active(run)
            Event.objects.filter(run_kind=run.KIND, run_id=run.pk).delete()
    except ProtectedError:  # somebody resumed it between the look and the deletion
        require_deletable(run)
        raise
    shutil.rmtree(run_dir(run.KIND, run.pk), ignore_errors=True)
    log_path(run.KIND, run.pk).unlink(missing_ok=True)


def require_deletable(run: TrainingRun) -> None:
    if not run.is_terminal:
        raise run_is_active(run)
    if other := run.continuations.order_by("id").first():
        raise ConflictError(
            f"Training run {other.pk} continues training run {run.pk}.",
            code="run_continued",
            hint=f"DELETE /api/training/runs/{other.pk} first: it says where its first steps came from.",
        )
    if adapter := adapter_of(run):
        raise ConflictError(
            f"The adapter {adapter.name} of training run {run.pk} is still there.",
            code="adapter_kept",
            hint=f"DELETE /api/training/adapters/{adapter.name} first: the run says how the adapter was made.",
        )


def run_is_active(run: TrainingRun) -> ConflictError:
    return ConflictError(
        f"Training run {run.pk} has not ended.",
        code="run_active",
        hint=f"POST /api/training/runs/{run.pk}/stop, then delete it when it has ended.",
    )
