"""One training run on its way: the model that a backend made for it, its rows, its warnings, its trainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ftproject.engine.backends.base import SkippedRow, TrainingCallbacks, TrainingError, TrainingJob
from ftproject.engine.batches import Collate
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.encoding import EncodedRow
from ftproject.engine.heldout_answers import Generating, evaluation_mode
from ftproject.engine.trainable_rows import UsableRows

if TYPE_CHECKING:
    from ftproject.engine.row_trainer import RowTrainer


@dataclass(frozen=True)
class TrainableModel:
    """What a backend hands to the trainer: a model with an untrained adapter, and how its batches are made.

    `collator` takes the rows in both forms, training rows first, and returns the batch builder over positions.
    `generating` puts the model into the mode in which it answers, and back.
    """

    model: Any
    processor: Any
    device: str
    collator: Callable[[Sequence[ResolvedConversation], Sequence[EncodedRow]], Collate]
    generating: Generating = evaluation_mode


@dataclass
class Run:
    """One training run on its way: what was asked for and what has become of it so far."""

    job: TrainingJob
    callbacks: TrainingCallbacks
    started: float = field(default_factory=time.monotonic)
    warnings: list[str] = field(default_factory=list)
    rows: UsableRows = field(default_factory=UsableRows)
    heldout: UsableRows = field(default_factory=UsableRows)
    trainer: RowTrainer | None = None
    image_token_id: int = -1
    best_step: int | None = None

    def __post_init__(self) -> None:
        self.config = self.job.effective.config

    @property
    def skipped(self) -> list[SkippedRow]:
        return [*self.rows.skipped, *self.heldout.skipped]

    def failing_rows(self) -> list[EncodedRow]:
        """The rows of the batch at hand; none before the first."""
        at_hand = set(self.trainer.rows_at_hand) if self.trainer else set()
        return [row for row in (*self.rows.encoded, *self.heldout.encoded) if row.index in at_hand]

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.callbacks.on_warning(message)

    def leave_if_stopped(self, _: int = 0) -> None:
        if self.callbacks.should_stop():
            raise TrainingError("stopped", "stopped before the first step: no adapter was made")
