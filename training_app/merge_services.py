"""Writes of merges: start, stop, and the deletion of a merge with the model that it made."""

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.db import IntegrityError, transaction
from django.db.models import Q

from ftproject.core.errors import ConflictError, InvalidInputError, Problem, UnavailableError
from ftproject.core.jobs import Job, enqueue_job, find_idempotent, job_models, must_wait, queue_position, stop_job
from ftproject.core.models import Event
from ftproject.core.postgres import lock_name
from ftproject.core.storage import log_path, models_dir, partial_path, run_dir
from ftproject.engine.backends.base import EngineError
from ftproject.engine.configs import TINY_MODEL_NAME, ConfigError, resolve_model
from ftproject.engine.gpu import device_facts
from training_app.adapter_services import hide_folder
from training_app.configuration import refusal
from training_app.models import Adapter, AdapterMerge
from training_app.services import request_fingerprint

if TYPE_CHECKING:
    from ftproject.engine.merging import MergePlan

SUFFIX = "-merged"
# A name that is one plain folder everywhere, and cannot be taken for a hub id, a hidden folder or an option.
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NAME_RULE = "use up to 128 letters, digits, '.', '_' and '-', the first one a letter or digit"
NOT_EFFECTIVE = (
    "The adapter was measured to change nothing, so the merged model will answer as its base does; "
    "the merge stops when it finds the same."
)
STOPPING = "Stop requested: nothing of the merge is kept"


@dataclass(frozen=True)
class StartedMerge:
    """A merge that was created now, or earlier under the same Idempotency-Key."""

    merge: AdapterMerge
    waits: bool
    position: int | None


@dataclass(frozen=True)
class MergeRequest:
    """A merge, checked as far as that goes without the GPU."""

    adapter: Adapter
    model_name: str
    plan: "MergePlan | None"
    warnings: list[str] = field(default_factory=list)


def merge_start(*, adapter: Adapter, model_name: str | None, idempotency_key: str | None = None) -> StartedMerge:
    """Creates a merge and queues it; the same key with the same request answers the merge that is there already."""
    fingerprint = request_fingerprint({"adapter": adapter.name, "model_name": model_name})
    if known := find_started(idempotency_key, fingerprint):
        return known
    request = merge_request(adapter=adapter, model_name=model_name)
    try:
        with transaction.atomic():
            return merge_create(request=request, idempotency_key=idempotency_key, fingerprint=fingerprint)
    except IntegrityError:  # the same key came in twice at once, and the other request was first
        if known := find_started(idempotency_key, fingerprint):
            return known
        raise


def merge_request(*, adapter: Adapter, model_name: str | None) -> MergeRequest:
    """Refuses what cannot work: a name that is taken or no name, an unknown base, a full disk."""
    name = model_name or f"{adapter.name}{SUFFIX}"
    require_model_name(name)
    plan = planned(adapter)
    if plan:
        require_space(plan)
    warnings = [NOT_EFFECTIVE] if adapter.effective is False else []
    return MergeRequest(adapter, name, plan, warnings)


def require_model_name(name: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        problem = Problem(code="invalid_name", message=NAME_RULE, field="model_name")
        raise InvalidInputError(f"{name[:200]!r} is no name of a model.", code="invalid_name", errors=[problem])
    if name == TINY_MODEL_NAME or os.path.lexists(models_dir() / name):
        raise model_exists(name)


def model_exists(name: str) -> ConflictError:
    hint = "Give another model_name, or delete the merge that made it: GET /api/training/merges lists them."
    return ConflictError(f"There is a model {name!r} already.", code="model_exists", hint=hint)


def planned(adapter: Adapter) -> "MergePlan | None":
    """What the merge will write; None for a base of the hub, whose files the merge itself may have to fetch."""
    path = base_path(adapter)
    if not Path(path).is_dir():
        return None
    from ftproject.engine.merging import plan_merge

    try:
        return plan_merge(adapter.path, path)
    except EngineError as exc:
        raise ConflictError(f"{adapter.name} cannot be merged: {exc.message}.", code=exc.code) from exc


def base_path(adapter: Adapter) -> str:
    """Where the adapter's base is loaded from; refused where it is not allowed, or needs a GPU that is not here."""
    try:
        return resolve_model(adapter.base_model_name, device_facts(), models_dir=models_dir())[1]
    except ConfigError as exc:
        raise refusal(exc) from exc


def require_space(plan: "MergePlan") -> None:
    needed, free = plan.needed_bytes // 2**20 + 1, shutil.disk_usage(models_dir()).free // 2**20
    if free < needed:
        raise UnavailableError(
            f"Only {free} MB are free in the data directory; the merged model needs {needed} MB.",
            code="disk_full",
            hint="Delete merges, adapters or datasets, or point QWEN3VL_DATA_DIR to a larger disk.",
        )


def find_started(idempotency_key: str | None, fingerprint: str) -> StartedMerge | None:
    merge = find_idempotent(AdapterMerge, idempotency_key, fingerprint)
    return describe_started(merge) if isinstance(merge, AdapterMerge) else None


def merge_create(*, request: MergeRequest, idempotency_key: str | None, fingerprint: str) -> StartedMerge:
    """The row of a checked request; the adapter's row is locked, so that it cannot be deleted meanwhile."""
    adapter = Adapter.objects.select_for_update().filter(pk=request.adapter.pk).first()
    if adapter is None:
        detail = f"The adapter {request.adapter.name} was just deleted."
        raise ConflictError(
            detail, code="adapter_deleted", hint="GET /api/training/adapters lists those that are there."
        )
    # The adapter's lock does not keep out a merge of another adapter to the same name.
    lock_name(f"model {request.model_name}")
    if unended_merges().filter(model_name=request.model_name).exists():
        raise model_exists(request.model_name)
    merge = AdapterMerge.objects.create(
        adapter=adapter,
        adapter_name=adapter.name,
        base_model_name=adapter.base_model_name,
        model_name=request.model_name,
        warnings=request.warnings,
        message="Waiting for the GPU queue",
        idempotency_key=idempotency_key,
        request_sha256=fingerprint,
    )
    enqueue_job(merge)
    merge.publish_status()
    return describe_started(merge)


def unended_merges() -> Any:
    return AdapterMerge.objects.exclude(status__in=Job.TERMINAL)


def describe_started(merge: AdapterMerge) -> StartedMerge:
    waits = merge.status == Job.Status.QUEUED and must_wait(merge)
    return StartedMerge(merge, waits, queue_position(merge) if waits else None)


def merge_stop(*, merge: AdapterMerge) -> AdapterMerge:
    """Stops a running merge, of which nothing is kept, or takes a waiting one out of the queue."""
    if merge.status == Job.Status.STOPPING:
        return merge
    stopped = stop_job(merge, reason=STOPPING)
    assert isinstance(stopped, AdapterMerge)  # noqa: S101 - stop_job answers with the same model
    if not stopped.is_terminal:
        stopped.publish_status()
    return stopped


def merge_delete(*, merge: AdapterMerge) -> None:
    """Removes a merge that has ended, and the model that it made unless something still needs it."""
    if not merge.is_terminal:
        raise ConflictError(
            f"Merge {merge.pk} has not ended.",
            code="run_active",
            hint=f"POST /api/training/merges/{merge.pk}/stop, then delete it when it has ended.",
        )
    hidden = partial_path(merge.path)
    with transaction.atomic():
        if merge.status == Job.Status.COMPLETED:
            require_unused(merge.model_name)
        merge_row_delete(merge)
        if merge.status == Job.Status.COMPLETED:
            hide_folder(merge.path, hidden)
    # A crash here leaves a `.partial-` folder, which a later start sweeps.
    shutil.rmtree(hidden, ignore_errors=True)
    shutil.rmtree(run_dir(merge.KIND, merge.pk), ignore_errors=True)
    log_path(merge.KIND, merge.pk).unlink(missing_ok=True)


def merge_row_delete(merge: AdapterMerge) -> None:
    Event.objects.filter(run_kind=merge.KIND, run_id=merge.pk).delete()
    AdapterMerge.objects.filter(pk=merge.pk).delete()


def require_unused(model_name: str) -> None:
    """A model stays while an adapter was trained on it, or a run that has not ended will load it."""
    users = [
        f"adapter {name}" for name in Adapter.objects.filter(base_model_name=model_name).values_list("name", flat=True)
    ]
    for model in job_models():
        if any(item.name == "model_name" for item in model._meta.fields) and model is not AdapterMerge:
            named = Q(("model_name", model_name))  # a field of most kinds of job, not of all
            users += [str(run) for run in model._default_manager.filter(named).exclude(status__in=Job.TERMINAL)]
    if users:
        raise ConflictError(
            f"The model {model_name} is used by {', '.join(users[:5])}.",
            code="model_in_use",
            hint="Delete those first: an adapter is nothing without its base.",
        )
