"""What the engine's tests share: rows of drawn digits, a recorder of callbacks, and short training jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ftproject.engine.backends.base import TrainingJob, TrainingProgress
from ftproject.engine.configs import (
    TINY_MODEL_PATH,
    DeviceFacts,
    EffectiveConfig,
    GenerationParams,
    parse_training_config,
    resolve_training_config,
)
from ftproject.engine.conversations import Conversation, ResolvedConversation

CPU = DeviceFacts(cuda=False, name=None, memory_total_mb=None, bf16=False)
GPU = DeviceFacts(cuda=True, name="NVIDIA H200", memory_total_mb=143771, bf16=True)
OLD_GPU = DeviceFacts(cuda=True, name="Tesla T4", memory_total_mb=15360, bf16=False)
TINY = str(TINY_MODEL_PATH)
SHORT = GenerationParams(max_new_tokens=8, do_sample=False)
QUESTION = "Which digit is shown in the image?"


@dataclass
class Recorder:
    """Training callbacks that keep what they were told, and ask for a stop once the step before `stop_after` was told.

    The trainer asks at the end of a step, before it tells that step: so step `stop_after` is the last one.
    """

    stop_after: int | None = None
    phases: list[str] = field(default_factory=list)
    progress: list[TrainingProgress] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    history: list[TrainingProgress] = field(default_factory=list)

    def on_phase(self, phase: str, message: str) -> None:
        self.phases.append(phase)

    def on_progress(self, progress: TrainingProgress) -> None:
        self.progress.append(progress)

    def on_history(self, steps: Sequence[TrainingProgress]) -> None:
        self.history.extend(steps)

    def on_warning(self, message: str) -> None:
        self.warnings.append(message)

    def should_stop(self) -> bool:
        steps = self.progress[-1].step if self.progress else 0
        return self.stop_after is not None and steps >= self.stop_after - 1

    @property
    def losses(self) -> list[float]:
        return [item.loss for item in self.progress if item.loss is not None]


def row(
    index: int, prompt: str = QUESTION, response: str = "7", images: Sequence[Path] = (), truth: str | None = None
) -> ResolvedConversation:
    truth = response if truth is None else truth
    conversation = Conversation(index, prompt, response, truth, tuple(str(path) for path in images))
    return ResolvedConversation(conversation, tuple(images))


def save_image(path: Path, size: tuple[int, int] = (64, 64), color: Any = (200, 30, 30)) -> Path:
    Image.new("RGB", size, color).save(path)
    return path


def effective_config(**sft: Any) -> EffectiveConfig:
    """A short training of the tiny model; keyword arguments go into sft_config."""
    settings = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 4e-3,
        "max_steps": 12,
        "warmup_steps": 2,
        "optim": "adamw_torch",
        "bf16": False,
        "seed": 0,
    }
    body = {"sft_config": settings | sft, "lora_config": {"lora_alpha": 32}}
    if "eval_steps" in sft:
        body["holdout_fraction"] = 0.1
    return resolve_training_config(parse_training_config(body), CPU, models_dir=Path("no-models"))


def training_job(
    folder: Path, rows: Sequence[ResolvedConversation], heldout: Sequence[ResolvedConversation] = (), **sft: Any
) -> TrainingJob:
    length = sft.pop("max_seq_length", None)
    resume = sft.pop("resume", None)
    effective = effective_config(**sft)
    if length is not None:
        config = effective.config
        config = replace(config, sft=replace(config.sft, max_seq_length=length))
        effective = replace(effective, config=config)
    return TrainingJob(
        effective=effective,
        rows=rows,
        heldout=heldout,
        adapter_dir=folder / "adapter",
        work_dir=folder / "work",
        provenance={"dataset_sha256": "abc"},
        resume_from_checkpoint=resume,
    )
