"""What preflight asks of training: the plan of a start body, the measured speed, the disk that a start wants."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.conf import settings

from datasets_app.preflight.port import MeasuredSpeed, PlannedTraining
from ftproject.core.errors import InvalidInputError
from ftproject.core.jobs import Job
from ftproject.core.storage import models_dir
from ftproject.engine.configs import ConfigError, TrainingConfig, parse_training_config, resolve_training_config
from ftproject.engine.gpu import device_facts
from training_app.configuration import default_config, device_name, refusal, resolve_config
from training_app.models import TrainingRun
from training_app.services import free_mb_wanted

NEEDS_GPU = "model_needs_gpu"


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
