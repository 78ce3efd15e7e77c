"""What preflight must be told about training, which lies in a layer above; that layer registers itself here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ftproject.engine.configs import EffectiveConfig


@dataclass(frozen=True)
class PlannedTraining:
    """What a start body would train here; `blockers` say why it could not start on this machine."""

    effective: EffectiveConfig
    device: str
    cuda: bool
    memory_total_mb: int | None
    blockers: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class MeasuredSpeed:
    """How fast the newest completed run of the same model on the same device was."""

    tokens_per_second: float
    run_id: int
    peak_memory_mb: int | None


class TrainingKnowledge(Protocol):
    def plan(self, body: Mapping[str, Any]) -> PlannedTraining:
        """The checked configuration of a start body; raises InvalidInputError with every problem of it."""

    def measured_speed(self, *, model_name: str, device: str) -> MeasuredSpeed | None: ...

    def free_mb_wanted(self, *, model_name: str) -> int:
        """Free disk space in MB without which a start is refused."""


_registered: list[TrainingKnowledge] = []


def register_training(knowledge: TrainingKnowledge) -> None:
    _registered[:] = [knowledge]


def training() -> TrainingKnowledge:
    return _registered[0]
