"""What preflight asks of training: the plan of a start body, the measured speed, the disk that a start wants."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.conf import settings

from datasets_app.preflight.port import MeasuredSpeed, PlannedTraining
from datasets_app.preflight.report import summary_of
from datasets_app.preflight_services import preflight_known, preflight_start, wait_for_preflight
from datasets_app.selectors import iter_rows, row_mapping
from ftproject.core.errors import InvalidInputError, UnavailableError
from ftproject.core.jobs import Job
from ftproject.core.light_lane import light_lane_is_idle
from ftproject.core.storage import models_dir
from ftproject.engine.configs import ConfigError, TrainingConfig, parse_training_config, resolve_training_config
from ftproject.engine.conversations import build_conversation
from ftproject.engine.gpu import device_facts
from training_app.configuration import OPTION_NAMES, default_config, device_name, refusal, resolve_config
from training_app.disk import free_mb_wanted
from training_app.models import TrainingRun
from training_app.services import ROWS_CHECKED, TrainingPlan

NEEDS_GPU = "model_needs_gpu"
# A dry run waits so long for a report; larger sets take longer, and say so.
DRY_RUN_SECONDS = 10.0
FULL_REPORT_HINT = "POST /api/datasets/preflight looks at every row, its images and its tokens."


class TrainingPreflight:
    """The implementation of `datasets_app.preflight.port.TrainingKnowledge`."""

    def plan(self, body: Mapping[str, Any]) -> PlannedTraining:
        try:
            config = parse_training_config(body, defaults=default_config())
        except ConfigError as exc:
            raise refusal(exc) from exc
        return plan_config(config)

    def measured_speed(self, *, model_name: str, device: str) -> MeasuredSpeed | None:
        runs = TrainingRun.objects.filter(model_name=model_name, device=device, status=Job.Status.COMPLETED)
        for run in runs.order_by("-id")[:20]:  # stopped and older runs may lack the figure
            if speed := run.metrics.get("tokens_per_second"):
                return MeasuredSpeed(float(speed), run.pk, run.metrics.get("peak_memory_mb"))
        return None

    def free_mb_wanted(self, *, model_name: str) -> int:
        return free_mb_wanted(model_name)


def plan_config(config: TrainingConfig) -> PlannedTraining:
    """A model that only lacks its GPU here is planned as on one, and the lack is a blocker: its data can be judged."""
    device = device_facts()
    blockers: list[dict[str, str]] = []
    try:
        effective, _ = resolve_config(config)
    except InvalidInputError as exc:
        if exc.code != NEEDS_GPU:
            raise
        blockers = [{"code": NEEDS_GPU, "message": str(exc)}]
        imagined = replace(device, cuda=True, bf16=True)
        effective = resolve_training_config(
            config,
            imagined,
            default_model=settings.DEFAULT_MODEL_NAME,
            models_dir=models_dir(),
            backend=settings.BACKEND,
        )
    return PlannedTraining(
        effective=effective,
        device=device_name(device),
        cuda=device.cuda or bool(blockers),
        memory_total_mb=device.memory_total_mb,
        blockers=blockers,
    )


def dry_run_preflight(*, plan: TrainingPlan, body: Mapping[str, Any]) -> dict[str, Any]:
    """The preflight's figures for a dry run: a report that still holds, one made now, else the first rows only."""
    asked = {name: value for name, value in body.items() if name not in OPTION_NAMES}
    started = preflight_known(dataset_id=plan.dataset.pk, body=asked)
    if started is None and light_lane_is_idle():
        started = preflight_start(dataset_id=plan.dataset.pk, body=asked)
    try:
        run = wait_for_preflight(run=started.run, seconds=DRY_RUN_SECONDS) if started else None
    except UnavailableError:
        run = None
    if run is not None and run.report:
        return {"complete": True, "run_id": run.pk, **summary_of(run.report)}
    return {"complete": False, "run_id": run.pk if run else None, **first_rows(plan)}


def first_rows(plan: TrainingPlan) -> dict[str, Any]:
    """How many of the first rows have what they need; images and tokens are not looked at."""
    rules = row_mapping(plan.mapping)
    rows = iter_rows(dataset=plan.dataset, limit=ROWS_CHECKED)
    skipped = [build_conversation(index, row, rules).skipped for index, row in rows]
    counts = {"total": plan.dataset.num_rows, "looked_at": len(skipped), "skipped": sum(skipped)}
    return {"rows": counts, "hint": FULL_REPORT_HINT}
