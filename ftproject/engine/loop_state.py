"""What a training loop has to remember across a resume and transformers does not: sums, patience, the best adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class LoopState:
    """Plain numbers, written into each checkpoint's manifest.

    `loss_sum` is the loss since the last logged step, `loss_total` that of all logged ones: without them the first
    logged loss and the mean of a resumed run would be others. `evaluation_due` is set when a stop broke off the
    held-out evaluation of the checkpoint's own step.
    """

    loss_sum: float = 0.0
    loss_total: float = 0.0
    logged_step: int = 0
    evaluation_due: bool = False
    best_loss: float | None = None
    best_step: int | None = None
    checks_without_gain: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LoopState:
        """The state that to_dict wrote; names that are not known any more are passed over."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    def judge(self, step: int, heldout_loss: float) -> bool:
        """Takes a held-out loss; returns whether it is the lowest so far."""
        better = self.best_loss is None or heldout_loss < self.best_loss
        if better:
            self.best_loss, self.best_step, self.checks_without_gain = heldout_loss, step, 0
        else:
            self.checks_without_gain += 1
        return better

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether early stopping ends the run here."""
        return patience is not None and self.checks_without_gain >= patience
