"""The backends under the contract, each as one subject with what differs: its device and how it is built."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.backends.base import Backend, TrainingJob
from ftproject.engine.configs import (
    DeviceFacts,
    EffectiveConfig,
    LoraSettings,
    ModelConfig,
    parse_training_config,
    resolve_training_config,
)
from ftproject.engine.gpu import device_facts
from ftproject.engine.training import TrainableModel
from tests.engine.conformance import unsloth_on_cpu
from tests.engine.support import CPU, TINY

SFT = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 4e-3,
    "max_steps": 4,
    "warmup_steps": 1,
    "seed": 5,
}


@dataclass(frozen=True)
class Subject:
    """One backend on the device of this machine."""

    name: str
    device: DeviceFacts

    def effective(
        self, lora: LoraSettings | None = None, model: ModelConfig | None = None, *, forced: Any = None, **sft: Any
    ) -> EffectiveConfig:
        """The tiny model's configuration on this backend and device; `forced` settings escape the device's rules."""
        body: dict[str, Any] = {
            "model_config_data": {"model_name": "tiny-qwen3-vl", "load_in_4bit": False},
            "sft_config": SFT | sft,
        }
        if "eval_steps" in sft:
            body["holdout_fraction"] = 0.1
        effective = resolve_training_config(
            parse_training_config(body), self.device, models_dir=Path("no-models"), backend=self.name
        )
        config = replace(effective.config, lora=lora or LoraSettings(lora_alpha=32))
        config = replace(config, sft=replace(config.sft, **(forced or {})))
        if model is not None:
            config = replace(config, model=replace(model, model_name="tiny-qwen3-vl", load_in_4bit=False))
        return replace(effective, config=config)

    def job(self, folder: Path, rows: Any, heldout: Any = (), **settings: Any) -> TrainingJob:
        """A short training that writes below `folder`."""
        resume = settings.pop("resume_from_checkpoint", None)
        effective = self.effective(**settings)
        return TrainingJob(effective, rows, heldout, folder / "adapter", folder / "work", resume_from_checkpoint=resume)

    def build(self, **settings: Any) -> TrainableModel:
        """The base with an untrained adapter, seeded as a run seeds it."""
        from ftproject.engine.training import seed_everything

        effective = self.effective(**settings)
        seed_everything(effective.config.sft.seed)
        if self.name == "unsloth":
            from ftproject.engine.backends import unsloth

            return unsloth.build_trainable(effective)
        from ftproject.engine.backends import transformers

        return transformers.build_trainable(effective)

    @property
    def backend(self) -> Backend:
        """The backend itself; not through get_backend, which refuses unsloth on a CPU."""
        if self.name == "unsloth":
            from ftproject.engine.backends.unsloth import UnslothBackend

            return UnslothBackend()
        from ftproject.engine.backends.transformers import TransformersBackend

        return TransformersBackend()

    @cache  # noqa: B019 - two subjects at most, for one test session
    def loaded(self) -> Any:
        """The base held in memory for answers."""
        return self.backend.load("tiny-qwen3-vl", TINY, load_in_4bit=False)


def parameters() -> list[Any]:
    """What the suite runs for: transformers here, unsloth on a GPU or, when asked for, on the CPU.

    Never both in one process: importing unsloth patches transformers, TRL and PEFT.
    """
    if unsloth_on_cpu.wanted():
        return [pytest.param("unsloth", id="unsloth-on-cpu")]
    missing = next((name for name in ("unsloth", "unsloth_zoo") if importlib.util.find_spec(name) is None), None)
    reasons = {"no CUDA device": not device_facts().cuda, f"{missing} is not installed": missing is not None}
    reason = next((text for text, holds in reasons.items() if holds), None)
    marks = [pytest.mark.gpu, pytest.mark.skipif(reason is not None, reason=reason or "")]
    return ["transformers", pytest.param("unsloth", marks=marks)]


def subject(name: str) -> Subject:
    """The subject of a parameter, on this machine's device."""
    device = device_facts()
    return Subject(name, device if device.cuda else CPU)
