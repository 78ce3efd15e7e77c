"""What listens to the trainer: the reporter, and TensorBoard's event files; import it inside functions only."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ftproject.engine.backends.base import TrainingCallbacks, TrainingProgress
from ftproject.engine.loop_guards import stopped_before_first_step
from ftproject.engine.row_trainer import RowTrainer


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Passes progress out and the wish to stop in."""

    def __init__(self, trainer: RowTrainer, callbacks: TrainingCallbacks) -> None:
        self.trainer = trainer
        self.callbacks = callbacks
        self.started_at = 0.0
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started_at = time.monotonic()
        self.first_step = state.global_step
        if state.log_history:
            self.callbacks.on_history(logged_steps(state))
        self.trainer.restore_sums()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.first_step and self.callbacks.should_stop():
            raise stopped_before_first_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.callbacks.should_stop():
            self.trainer.stop_with("stop")
        if not control.should_log:
            self.callbacks.on_progress(self._progress(state, {}))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if {"loss", "eval_loss"} & logs.keys():
            self.callbacks.on_progress(self._progress(state, logs))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self.trainer.judge_heldout(metrics["eval_loss"])

    def _progress(self, state: Any, logs: dict[str, float]) -> TrainingProgress:
        done = state.global_step - self.first_step
        elapsed = time.monotonic() - self.started_at
        return TrainingProgress(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=state.epoch,
            loss=logs.get("loss"),
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            eval_loss=logs.get("eval_loss"),
            eta_seconds=elapsed / done * (state.max_steps - state.global_step) if done else None,
            eval_exact_match=logs.get("eval_exact_match"),
            eval_token_f1=logs.get("eval_token_f1"),
        )


def logged_steps(state: Any) -> list[TrainingProgress]:
    """What transformers logged so far, one entry a step: the held-out figures with the loss of their step."""
    steps: dict[int, dict[str, Any]] = {}
    for entry in state.log_history:
        steps.setdefault(int(entry["step"]), {}).update(entry)
    return [
        TrainingProgress(
            total_steps=state.max_steps,
            **{item.name: entry[item.name] for item in fields(TrainingProgress) if item.name in entry},
        )
        for entry in steps.values()
    ]


class EventFiles(TrainerCallback):  # type: ignore[misc]
    """Writes what is logged as TensorBoard scalars: train/<name> and eval/<name> by step.

    transformers' own callback also writes all arguments, paths of this machine among them, and begins anew on a resume.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for entry in state.log_history:  # the steps before a resume: the curve is whole
            self._write(int(entry["step"]), entry)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self._write(state.global_step, logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.writer.close()

    def _write(self, step: int, logs: dict[str, float]) -> None:
        for name, value in logs.items():
            if name != "step" and isinstance(value, int | float):
                tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
                self.writer.add_scalar(tag, value, step)
