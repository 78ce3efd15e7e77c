"""Continues a run that was stopped or died: a new run from its last checkpoint, the old one stays as it ended."""

import shutil
from collections.abc import Mapping
from typing import Any

from django.db import IntegrityError, connection, transaction

from ftproject.core.errors import ConflictError, InvalidInputError
from ftproject.core.jobs import enqueue_job
from ftproject.engine.configs import EffectiveConfig, from_dict, to_dict
from training_app.checkpoints import (
    Checkpoint,
    Resumability,
    checkpoints_dir,
    folder_bytes,
    heir_of_checkpoints,
    lineage,
    resumability,
)
from training_app.configuration import device_name, read_training_config, resolve_config
from training_app.disk import require_free_disk
from training_app.models import TrainingMetric, TrainingRun
from training_app.services import StartedRun, describe_started, find_started, publish_status, request_fingerprint

# How many processes prepare the batches is the machine's business and changes no number.
FREE_TO_CHANGE = frozenset({"dataloader_num_workers"})
LOGGED = ("epoch", "loss", "learning_rate", "grad_norm", "eval_loss", "eval_exact_match", "eval_token_f1")


def resume_training(*, run: TrainingRun, idempotency_key: str | None = None) -> StartedRun:
    """Creates and queues the run that continues `run`; the same key answers the run that is there already."""
    fingerprint = request_fingerprint({"resume": run.pk})
    try:
        with transaction.atomic():
            # Looked for behind the lock: the loser of two equal requests would else be refused for the winner's run.
            found = locked(run.pk)
            return find_started(idempotency_key, fingerprint) or create_continuation(
                run=found, idempotency_key=idempotency_key, request_sha256=fingerprint
            )
    except IntegrityError:  # a start with the same key came in at once, and was first
        if known := find_started(idempotency_key, fingerprint):
            return known
        raise


def require_resumable(run: TrainingRun) -> Checkpoint:
    found = resumability(run)
    if found.checkpoint is None:
        raise refusal(run, found)
    return found.checkpoint


def refusal(run: TrainingRun, found: Resumability) -> ConflictError:
    hints = {
        "run_active": f"POST /api/training/runs/{run.pk}/stop ends it; then it can be resumed.",
        "already_resumed": f"Look at run {found.continued_by}; when it ends early, resume that one.",
    }
    return ConflictError(
        f"Training run {run.pk} cannot be resumed. {found.reason}",
        code=found.code,
        hint=hints.get(found.code or "", "POST /api/training/start with its requested_config begins anew."),
        extra={"continued_by": found.continued_by} if found.continued_by else None,
    )


def effective_again(run: TrainingRun) -> tuple[EffectiveConfig, str]:
    """The run's configuration as this machine runs it today, and the device; refuses any other than it had."""
    try:
        effective, device = resolve_config(from_dict(run.config), backend=run.backend)
    except InvalidInputError as exc:
        raise ConflictError(
            f"Training run {run.pk} cannot be resumed here. {exc.detail}",
            code="not_resumable",
            hint=exc.hint,
            errors=exc.errors,
        ) from exc
    changed = sorted(changed_settings(run.config, to_dict(effective.config)))
    if changed:
        raise ConflictError(
            f"Training run {run.pk} cannot be resumed here: this machine would train with other settings "
            f"({', '.join(changed)}).",
            code="not_resumable",
            hint="Resume it on a machine like the one that it ran on, or start anew with its requested_config.",
        )
    return effective, device_name(device)


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the settings whose values differ; one that the run did not know yet has no value to differ from."""
    changed = []
    for name, value in before.items():
        if isinstance(value, Mapping):
            changed += changed_settings(value, now.get(name) or {}, f"{prefix}{name}.")
        elif name not in FREE_TO_CHANGE and value is not None and now.get(name) != value:
            changed.append(f"{prefix}{name}: {value} -> {now.get(name)}")
    return changed


def create_continuation(*, run: TrainingRun, **request: str | None) -> StartedRun:
    """The new row with the steps logged so far, behind every refusal that can be known by now."""
    checkpoint = require_resumable(run)
    effective, device = effective_again(run)
    require_free_disk(effective)
    owner, origin = checkpoint.owner, f"continues run {run.pk} from step {checkpoint.step}"
    continuation = TrainingRun.objects.create(
        resumed_from=run,
        resumed_step=checkpoint.step,
        dataset=run.dataset,
        mapping=run.mapping,
        requested_config=run.requested_config,
        config=run.config,
        model_name=run.model_name,
        device=device,
        backend=run.backend,
        warnings=[*dict.fromkeys([*changed_from_request(run), *effective.warnings]), *other_device(run, device)],
        rows_sha256=owner.rows_sha256,
        trained_rows=owner.trained_rows,
        heldout_rows=owner.heldout_rows,
        current_step=checkpoint.step,
        total_steps=run.total_steps,
        message=f"Waiting for the GPU queue; {origin}",
        **request,
    )
    copy_logged_steps(source=run, target=continuation)
    enqueue_job(continuation)
    publish_status(continuation)
    return describe_started(continuation)


def changed_from_request(run: TrainingRun) -> list[str]:
    """What the device made of the body that the first run was started with; its effective configuration hides that."""
    try:
        config = read_training_config(run.requested_config)
        return resolve_config(config, backend=run.backend)[0].warnings
    except InvalidInputError:  # a field or a model of then is not known any more; the effective values still are
        return []


def other_device(run: TrainingRun, device: str) -> list[str]:
    if device == run.device:
        return []
    return [f"run {run.pk} ran on {run.device}, its continuation runs on {device}: the numbers may differ slightly"]


def locked(run_id: int) -> TrainingRun:
    """The run as it is now; nobody else continues one of its lineage until the transaction ends.

    On SQLite the transaction alone sees to that, elsewhere the lock on the first run.
    """
    run = TrainingRun.objects.get(pk=run_id)
    first = list(lineage(run))[-1]
    TrainingRun.objects.select_for_update().get(pk=first.pk)
    return TrainingRun.objects.get(pk=run_id)


def copy_logged_steps(*, source: TrainingRun, target: TrainingRun) -> None:
    """What was logged up to the checkpoint, so that the curve of the new run is whole; its status shows the last.

    One statement of the database: 99,000 steps through the ORM held its lock for 29 s (measured, load 6).
    """
    table, columns = TrainingMetric._meta.db_table, ", ".join(("step", "created_at", *LOGGED))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (run_id, {columns}) "  # nosec B608 # noqa: S608 - names of our own model
            f"SELECT %s, {columns} FROM {table} WHERE run_id = %s AND step <= %s ORDER BY step",
            [target.pk, source.pk, target.resumed_step],
        )
    latest = {name: value for name in LOGGED if (value := latest_logged(target, name)) is not None}
    if latest:
        TrainingRun.objects.filter(pk=target.pk).update(**latest)
        target.refresh_from_db()


def latest_logged(run: TrainingRun, name: str) -> float | None:
    value: float | None = run.logged.exclude(**{name: None}).order_by("-step").values_list(name, flat=True).first()
    return value


def delete_checkpoints(*, run: TrainingRun) -> int:
    """Frees the space of a run that nobody will resume; returns the bytes. A continuation on its way needs them."""
    with transaction.atomic():
        run = locked(run.pk)
        user = run if not run.is_terminal else heir_of_checkpoints(run)
        if user is not None:
            raise ConflictError(
                f"Training run {user.pk} still needs the checkpoints of run {run.pk}.",
                code="run_active",
                hint=f"POST /api/training/runs/{user.pk}/stop first.",
            )
        freed = folder_bytes(checkpoints_dir(run))
        shutil.rmtree(checkpoints_dir(run), ignore_errors=True)
    return freed
