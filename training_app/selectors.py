"""Reads of training runs and adapters."""

import math
import re
from pathlib import Path
from typing import Any

from django.db.models import QuerySet

from ftproject.core.errors import ConflictError, NotFoundError
from ftproject.core.events import EventMessage, event_message
from ftproject.core.jobs import queue_position
from ftproject.core.models import Event
from ftproject.core.pagination import Page
from ftproject.core.storage import adapters_dir
from ftproject.engine.adapters import read_adapter_info
from ftproject.engine.backends.base import EngineError
from ftproject.engine.splits import decode_ranges
from training_app.checkpoints import resumability
from training_app.configuration import LARGEST_ID
from training_app.models import Adapter, TrainingMetric, TrainingRun

NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what no database takes as text
LONGEST_REFERENCE = 4096  # PATH_MAX; a longer text cannot be a path that we listed
STATUS_FIELDS = (
    "status",
    "current_step",
    "total_steps",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "eval_loss",
    "eval_exact_match",
    "eval_token_f1",
    "best_step",
    "eta_seconds",
    "elapsed_seconds",
    "message",
    "error",
    "stopped_early",
    "resumed_step",
)
ADDED_TO_STATUS = ("run_id", "adapter_path", "queue_position", "resumed_from", "can_resume", "resume_reason")
RUN_FIELDS = (
    "dataset_id",
    "mapping_id",
    "model_name",
    "device",
    "backend",
    "num_train_rows",
    "num_heldout_rows",
    "num_skipped_rows",
    "warnings",
    "metrics",
    "created_at",
    "started_at",
    "completed_at",
)


def get_training_status() -> dict[str, Any]:
    """What `GET /api/training/status` shows: the running run, else the newest, else `idle` and nulls."""
    run = TrainingRun.active_or_newest()
    if run is None:
        nothing: dict[str, Any] = dict.fromkeys((*STATUS_FIELDS, *ADDED_TO_STATUS))
        return nothing | {"status": "idle"}
    return run_progress(run)


def run_progress(run: TrainingRun) -> dict[str, Any]:
    """The status fields of one run, every float finite or null."""
    adapter = adapter_of(run)
    fields = {name: finite(getattr(run, name)) for name in STATUS_FIELDS}
    waiting = run.status == run.Status.QUEUED
    continuable = resumability(run)
    return fields | {
        "run_id": run.pk,
        "adapter_path": str(adapter.path) if adapter else None,
        "queue_position": queue_position(run) if waiting else None,
        "resumed_from": run.resumed_from_id,
        "can_resume": continuable.checkpoint is not None,
        "resume_reason": continuable.reason,
    }


def run_facts(run: TrainingRun) -> dict[str, Any]:
    """The status fields of a run and everything that was known when it started."""
    adapter = adapter_of(run)
    facts = {name: getattr(run, name) for name in RUN_FIELDS}
    names = {"id": run.pk, "dataset": run.dataset.filename, "adapter": adapter.name if adapter else None}
    return run_progress(run) | facts | names


def run_details(run: TrainingRun) -> dict[str, Any]:
    return run_facts(run) | {"requested_config": run.requested_config, "config": run.config, "versions": run.versions}


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def adapter_of(run: TrainingRun) -> Adapter | None:
    found: Adapter | None = getattr(run, "adapter", None)
    return found


def get_run(*, run_id: int) -> TrainingRun:
    run = None
    if 0 < run_id <= LARGEST_ID:
        run = TrainingRun.objects.select_related("adapter", "dataset").filter(pk=run_id).first()
    if run is None:
        hint = "GET /api/training/runs lists them."
        raise NotFoundError(f"There is no training run {run_id}.", code="run_not_found", hint=hint)
    return run


def list_runs(
    *, page: int, page_size: int, status: str | None = None, dataset_id: int | None = None
) -> tuple[Page, list[TrainingRun]]:
    """One page of all runs, newest first; by status and by dataset when given."""
    wanted = {"status": status, "dataset_id": dataset_id}
    runs = TrainingRun.objects.filter(**{name: value for name, value in wanted.items() if value is not None})
    runs = runs.select_related("adapter", "dataset").prefetch_related("continuations").order_by("-id")
    where = Page(page, page_size, runs.count())
    return where, list(runs[where.offset : where.offset + page_size])


def list_metrics(*, run: TrainingRun, since_step: int = 0) -> QuerySet[TrainingMetric]:
    """Every logged step after `since_step`, ascending."""
    return run.logged.filter(step__gt=since_step).order_by("step")


def list_run_events(*, run: TrainingRun, since: int, limit: int) -> list[EventMessage]:
    """Stored events of a run with an id above `since`, oldest first."""
    events = Event.objects.filter(run_kind=run.KIND, run_id=run.pk, id__gt=since).order_by("id")
    return [event_message(event) for event in events[:limit]]


def list_adapters() -> list[Adapter]:
    """All adapters, oldest first: clients take the last one as the newest."""
    return list(Adapter.objects.select_related("run").order_by("created_at", "id"))


def find_adapter(*, reference: str | int) -> Adapter:
    """The adapter that a request means by name, id, or the exact path that the list shows.

    Anything else is 404 and opens nothing: the reference is compared with rows, and only a row's own folder is
    looked at.
    """
    adapter = find_adapter_row(reference=reference)
    if not _folder_is_sound(adapter.path):
        raise adapter_not_found(reference)
    return adapter


def find_effective_adapter(*, reference: str | int | None) -> Adapter | None:
    """The adapter whose answers may be called fine-tuned; None for the base, a refusal for one that changes nothing."""
    if reference is None:
        return None
    adapter = find_adapter(reference=reference)
    if adapter.effective is False:
        raise ConflictError(
            f"The adapter {adapter.name!r} does not change the model's answers, so none of them is fine-tuned.",
            code="adapter_not_effective",
            hint="Train again with a higher learning rate or more steps, or ask the base with adapter_path null.",
        )
    return adapter


def find_adapter_row(*, reference: str | int) -> Adapter:
    """The same by the row alone, so that an adapter whose folder was lost can still be deleted."""
    adapter = _adapter_row(reference)
    if adapter is None:
        raise adapter_not_found(reference)
    return adapter


def adapter_not_found(reference: str | int) -> NotFoundError:
    return NotFoundError(
        f"There is no adapter {str(reference)[:200]!r}.",
        code="adapter_not_found",
        hint="GET /api/training/adapters lists names, ids and paths; give one of them exactly.",
    )


def _adapter_row(reference: str | int) -> Adapter | None:
    adapters = Adapter.objects.select_related("run")
    if isinstance(reference, bool) or not isinstance(reference, str | int):
        return None
    if isinstance(reference, int):
        return adapters.filter(pk=reference).first() if 0 < reference <= LARGEST_ID else None
    if not reference or len(reference) > LONGEST_REFERENCE or NO_TEXT.search(reference):
        return None
    if "/" in reference:
        adapter = adapters.filter(name=reference.rpartition("/")[2]).first()
        return adapter if adapter and str(adapter.path) == reference else None
    by_name = adapters.filter(name=reference).first()
    if by_name is None and reference.isascii() and reference.isdigit() and len(reference) < 20:
        return _adapter_row(int(reference))
    return by_name


def _folder_is_sound(path: Path) -> bool:
    """The folder lies, links followed, directly in the adapters folder and holds a complete, pickle-free adapter."""
    try:
        real = path.resolve(strict=True)
        if path.is_symlink() or real.parent != adapters_dir().resolve():
            return False
        if any(entry.is_symlink() for entry in real.iterdir()):
            return False
        read_adapter_info(path)
    except (OSError, ValueError, EngineError):
        return False
    return True


def trained_row_numbers(*, adapter: Adapter) -> set[int] | None:
    """The dataset rows that the adapter was trained on; None when its run is gone."""
    return set(decode_ranges(adapter.run.trained_rows)) if adapter.run else None


def heldout_row_numbers(*, adapter: Adapter) -> set[int] | None:
    """The dataset rows that were kept out of its training; None when its run is gone."""
    return set(decode_ranges(adapter.run.heldout_rows)) if adapter.run else None
