"""Writes of preflights: start one or take one that is still true, wait for it, stop it."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import transaction

from datasets_app.models import ColumnMapping, Dataset, PreflightRun
from datasets_app.preflight.port import PlannedTraining, training
from datasets_app.preflight_selectors import reusable_preflight
from datasets_app.selectors import require_ready_dataset
from ftproject.core.errors import UnavailableError
from ftproject.core.jobs import Job, enqueue_job, stop_job
from ftproject.engine.configs import to_dict
from ftproject.engine.token_counts import model_file

POLL_SECONDS = 0.1
MODEL_FILES = ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "config.json")


@dataclass(frozen=True)
class StartedPreflight:
    """A preflight that was made now, or an earlier one whose report still holds."""

    run: PreflightRun
    reused: bool


def preflight_start(*, dataset_id: int | None, body: Mapping[str, Any]) -> StartedPreflight:
    """Queues a preflight of what this start body would train; one that is under way or still true is taken."""
    wanted = _wanted(dataset_id, body)
    known = reusable_preflight(fingerprint=wanted.fingerprint)
    if known is not None:
        return StartedPreflight(known, reused=True)
    with transaction.atomic():
        wanted.requested_config = dict(body)
        wanted.save()
        enqueue_job(wanted)
    return StartedPreflight(wanted, reused=False)


def preflight_known(*, dataset_id: int | None, body: Mapping[str, Any]) -> StartedPreflight | None:
    """The preflight that `preflight_start` would take instead of making one."""
    known = reusable_preflight(fingerprint=_wanted(dataset_id, body).fingerprint)
    return StartedPreflight(known, reused=True) if known else None


def _wanted(dataset_id: int | None, body: Mapping[str, Any]) -> PreflightRun:
    plan = training().plan(body)
    dataset, mapping = require_ready_dataset(dataset_id=dataset_id)
    return PreflightRun(
        dataset=dataset,
        mapping=mapping,
        model_name=plan.effective.model_name,
        config=to_dict(plan.effective.config),
        fingerprint=fingerprint_of(dataset, mapping, plan),
        message="Waiting for its turn",
    )


def fingerprint_of(dataset: Dataset, mapping: ColumnMapping, plan: PlannedTraining) -> str:
    """Equal for requests whose reports would be equal: rows, mapping, configuration, model files, speed, version."""
    path = plan.effective.model_path
    speed = training().measured_speed(model_name=plan.effective.model_name, device=plan.device)
    files = [found.stat() for name in MODEL_FILES if (found := model_file(path, name))]
    facts = {
        "dataset": [dataset.pk, dataset.sha256],
        "mapping": mapping.pk,
        "config": to_dict(plan.effective.config),
        "device": [plan.device, plan.memory_total_mb, plan.blockers],
        "model": [path, [[stat.st_size, stat.st_mtime_ns] for stat in files]],
        "speed": speed.run_id if speed else None,
        "version": settings.VERSION,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def wait_for_preflight(*, run: PreflightRun, seconds: float) -> PreflightRun:
    """Waits for its end at most so long; a failed one is raised as such."""
    deadline = time.monotonic() + seconds
    while not run.is_terminal and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        run.refresh_from_db()
    if run.status == Job.Status.ERROR:
        raise UnavailableError(
            f"The preflight {run.pk} made no report: {run.error}",
            code="preflight_failed",
            hint=f"GET /api/datasets/preflight/{run.pk} shows it; start it again when the cause is gone.",
        )
    return run


def preflight_stop(*, run: PreflightRun) -> PreflightRun:
    """Stops a running one, or takes a waiting one out of the queue; either leaves no report."""
    if run.status == Job.Status.STOPPING:
        return run
    stopped = stop_job(run, reason="Stop requested: no report is made")
    assert isinstance(stopped, PreflightRun)  # noqa: S101 - stop_job answers with the same model
    return stopped
