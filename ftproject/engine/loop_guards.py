"""What guards the training loop: numbers that break, random numbers, needless walks, a full disk; over torch and numpy.

Import it inside functions only.
"""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from ftproject.engine.backends.base import TrainingError

LOSSES_HELD = 64  # unlooked-at losses kept on a CUDA device
DISK_WORDS = ("inline_container", "file write failed", "unexpected pos", "PytorchStreamWriter")


class EvaluationStoppedError(Exception):
    """A stop was asked for in the middle of a held-out evaluation."""


@dataclass
class WatchedLosses:
    """Losses not yet looked at, with the step and the dataset rows of each.

    Looking at a loss makes a CUDA device wait, so there they are gathered until something waits anyway.
    """

    entries: list[tuple[int, Sequence[int], Any]] = field(default_factory=list)

    def add(self, step: int, rows: Sequence[int], loss: Any) -> None:
        self.entries.append((step, rows, loss.detach()))
        if not loss.is_cuda or len(self.entries) >= LOSSES_HELD:
            self.check()

    def check(self) -> None:
        """Raises TrainingError loss_not_finite for the first loss that is NaN or infinite."""
        entries, self.entries = self.entries, []
        if entries and not math.isfinite(float(torch.stack([loss for _, _, loss in entries]).sum())):
            for step, rows, loss in entries:
                if not torch.isfinite(loss):
                    raise not_finite_error(f"the loss of step {step}", rows)


def not_finite_error(what: str, rows: Sequence[int]) -> TrainingError:
    """The error of a number that is NaN or infinite, naming the dataset rows of its batch."""
    names = ", ".join(str(row) for row in rows)
    message = f"{what} is not finite; its rows are {names}. Lower the learning rate or check them."
    return TrainingError("loss_not_finite", message)


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Whatever is drawn inside, the training goes on with the random numbers it would have had."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def few_walks(model: Any, trained: Sequence[Any]) -> Iterator[None]:
    """Spares two walks over every module of the model in each step: into the mode it is in, and to unset gradients.

    Only `trained` parameters ever have a gradient. The walks of a step took 5 of 88 ms in the tiny model; a model of
    8B parameters has ten times its modules.
    """
    change_mode = model.train

    def train(mode: bool = True) -> Any:
        return model if model.training == mode else change_mode(mode)

    def zero_grad(set_to_none: bool = True) -> None:
        for parameter in trained:
            parameter.grad = None

    model.train, model.zero_grad = train, zero_grad
    try:
        yield
    finally:
        del model.train, model.zero_grad


@contextmanager
def garbage_set_aside() -> Iterator[None]:
    """Takes what exists now (a million objects of imported modules) out of the collector's rounds meanwhile."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def stopped_before_first_step() -> TrainingError:
    """The error of a run that was stopped before it had trained anything."""
    return TrainingError("stopped", "stopped before the first step: no adapter was made")


def is_disk_failure(error: BaseException) -> bool:
    """Whether writing failed for want of space or a broken disk; torch's writer has no error class of its own."""
    return isinstance(error, OSError | SafetensorError) or any(word in str(error) for word in DISK_WORDS)
