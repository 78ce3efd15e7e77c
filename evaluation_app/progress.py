"""Writes a run's progress onto its row and to the sockets, often enough to watch and never more."""

import time
from collections.abc import Callable

from evaluation_app.models import EvaluationRun
from ftproject.core.events import publish

# Five messages a second are smooth to watch; a tiny model finishes hundreds of batches a second.
MIN_INTERVAL = 0.2


class ClaimLostError(RuntimeError):
    """The run was ended or taken over elsewhere: what this process computes is no longer wanted."""


class ProgressReporter:
    def __init__(self, run: EvaluationRun, *, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self.done, self.clock = run, done, clock
        self.start, self.done_before = clock(), done
        self.published_at: float | None = None
        self.published: int | None = None

    def add(self, rows: int) -> None:
        """Counts finished rows; `current` on the row is always right, the event may wait for the next one."""
        self.done += rows
        if not self.run.note(current=self.done, eta_seconds=self.eta()):
            raise ClaimLostError(f"{self.run.name} is no longer ours")
        if self.published_at is None or self.clock() - self.published_at >= MIN_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Publishes where the run stands unless that was said already."""
        if self.published == self.done:
            return
        self.published, self.published_at = self.done, self.clock()
        data = {
            "run_id": self.run.pk,
            "current": self.done,
            "total": self.run.total or 0,
            "model_type": self.run.model_type,
        }
        publish("eval_progress", data, run_kind=self.run.KIND, run_id=self.run.pk)  # type: ignore[arg-type]

    def eta(self) -> float | None:
        """Seconds until the last row, from this process's own speed; None before its first row."""
        finished = self.done - self.done_before
        if finished <= 0 or self.run.total is None:
            return None
        return round((self.clock() - self.start) / finished * (self.run.total - self.done), 3)
