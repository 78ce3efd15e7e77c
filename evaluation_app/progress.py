"""Stores a run's samples and tells its row and the sockets how far it is, often enough to watch and never more."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from evaluation_app.models import EvaluationRun, Sample
from ftproject.core.events import EvalProgressEvent, publish
from ftproject.core.persistence import persistently

# Five messages a second are smooth to watch; a tiny model finishes hundreds of batches a second.
MIN_INTERVAL = 0.2


class ClaimLostError(RuntimeError):
    """The run was ended or taken over elsewhere: what this process computes is no longer wanted."""


class ProgressReporter:
    """Stores samples with what the row says of them, tells the sockets, and estimates the time left."""

    def __init__(self, run: EvaluationRun, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.run, self.clock = run, clock
        self.done = self.done_before = persistently(run.samples.count)
        self.start = clock()
        self.published_at: float | None = None
        self.published: int | None = None

    def begin(self) -> None:
        """The first row goes to the model now: the time left is reckoned from its speed alone."""
        self.done_before, self.start = self.done, self.clock()

    def add(self, samples: Sequence[Sample], **changes: Any) -> None:
        """Stores finished rows and changes of the run; `current` is always right, the event may wait for the next."""
        if not samples:
            return
        reached = self.done + len(samples)
        attempts = count()
        persistently(lambda: self.write(samples, reached, changes, again=next(attempts) > 0))
        self.done = reached
        if self.published_at is None or self.clock() - self.published_at >= MIN_INTERVAL:
            self.flush()

    def write(
        self, samples: Sequence[Sample], reached: int, changes: Mapping[str, Any], *, again: bool = False
    ) -> None:
        """In one transaction: after a kill the row never claims more than is stored."""
        if again:  # the connection may have broken after it had committed
            stored = self.run.samples.filter(index__in=[sample.index for sample in samples])
            known = set(stored.values_list("index", flat=True))
            samples = [sample for sample in samples if sample.index not in known]
        Sample.objects.bulk_create(samples)
        if not self.run.note(current=reached, eta_seconds=self.eta(reached), **changes):
            raise ClaimLostError(f"{self.run.name} is no longer ours")

    def flush(self) -> None:
        """Publishes where the run stands unless that was said already."""
        if self.published == self.done:
            return
        data: EvalProgressEvent = {
            "run_id": self.run.pk,
            "current": self.done,
            "total": self.run.total or 0,
            "model_type": self.run.model_type,
        }
        persistently(lambda: publish("eval_progress", data, run_kind=self.run.KIND, run_id=self.run.pk))
        self.published, self.published_at = self.done, self.clock()

    def eta(self, reached: int) -> float | None:
        """Seconds until the last row, from this process's own speed; None before its first row."""
        finished = reached - self.done_before
        if finished <= 0 or self.run.total is None:
            return None
        return round((self.clock() - self.start) / finished * (self.run.total - reached), 3)
