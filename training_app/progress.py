"""Writes what a training run reports to its row, its metrics and the event table, without slowing the run."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace

from django.db import transaction

from ftproject.core.database_faults import TRANSIENT, close_broken_connections
from ftproject.core.errors import ProductError
from ftproject.core.events import TrainingProgressEvent, publish
from ftproject.core.jobs import Job
from ftproject.core.persistence import persistently
from ftproject.engine.adapters import finite
from ftproject.engine.backends.base import TrainingProgress
from training_app.models import TrainingMetric, TrainingRun
from training_app.services import publish_status

logger = logging.getLogger(__name__)

# Steps of the tiny model come at 10/s; a commit for each would cost a fifth of them on a slow disk.
WRITE_SECONDS = 0.2
SAY_SECONDS = 0.5
RETRY_SECONDS = 2.0
PHASES = (Job.Status.LOADING_MODEL, Job.Status.PREPARING_DATA, Job.Status.TRAINING)
METRIC_FIELDS = ("epoch", "loss", "learning_rate", "grad_norm", "eval_loss", "eval_exact_match", "eval_token_f1")
LONGEST_MESSAGE = 500


class StoppedBeforeFirstStepError(ProductError):
    default_code = "stopped"

    def __init__(self) -> None:
        super().__init__("Stopped before the first step: no adapter was made.")


class LossNotFiniteError(ProductError):
    default_code = "loss_not_finite"

    def __init__(self, step: int) -> None:
        hint = "Lower the learning rate, or look for broken rows."
        super().__init__(f"The loss of step {step} is not finite: no adapter was made.", hint=hint)


class RunReporter:
    """The training callbacks of one run: phases, progress, warnings, and the wish to stop.

    Logged steps are gathered and written together, at most every 0.2 s, each with its metric row and its event;
    `flush` writes the rest, so none is lost.
    """

    def __init__(self, run: TrainingRun, should_stop: Callable[[], bool]) -> None:
        self.run = run
        self.should_stop = should_stop
        self.pending: list[TrainingProgress] = []
        self.latest: TrainingProgress | None = None
        self.written_at = -math.inf
        self.said_at = -math.inf
        self.reached = 0  # the claim made it loading_model

    def on_phase(self, phase: str, message: str) -> None:
        """Moves the status forward, never back; `saving` and `verifying` are only a message."""
        self.flush()
        if phase in PHASES:
            self.leave_if_stopped()
        text = (message[:1].upper() + message[1:])[:LONGEST_MESSAGE]
        place = PHASES.index(Job.Status(phase)) if phase in PHASES else self.reached
        if place <= self.reached:
            self.say(text)
            return
        self.reached = place
        if persistently(lambda: self.run.advance(phase, message=text)):
            self.tell_status()

    @property
    def has_begun(self) -> bool:
        """True once the training itself was reached: from then on a stop saves."""
        return self.reached == len(PHASES) - 1

    def tell_status(self) -> None:
        persistently(lambda: publish_status(self.run))

    def say(self, message: str) -> None:
        persistently(lambda: self.run.note(message=message[:LONGEST_MESSAGE]))

    def on_rows_read(self, done: int, total: int) -> None:
        if time.monotonic() - self.said_at >= SAY_SECONDS:
            self.said_at = time.monotonic()
            self.say(f"Reading the rows and their images: {done} of {total}")

    def leave_if_stopped(self) -> None:
        if self.should_stop() and self.latest is None:
            raise StoppedBeforeFirstStepError

    def on_history(self, steps: Sequence[TrainingProgress]) -> None:
        """Completes the curve of a continuation: the killed run may have kept its last steps to itself."""
        newest = self.run.logged.order_by("-step").values_list("step", flat=True)
        known = persistently(newest.first) or 0
        unknown = [TrainingProgress(**finite(asdict(progress))) for progress in steps if progress.step >= known]
        persistently(lambda: write_metrics(self.run, unknown))

    def on_warning(self, message: str) -> None:
        if message not in self.run.warnings:
            persistently(lambda: self.run.note(warnings=[*self.run.warnings, message]))

    def on_progress(self, progress: TrainingProgress) -> None:
        broken = progress.loss is not None and not math.isfinite(progress.loss)
        self.gather(TrainingProgress(**finite(asdict(progress))))
        if broken or progress.step >= progress.total_steps or time.monotonic() - self.written_at >= WRITE_SECONDS:
            self.flush()
        if broken:
            raise LossNotFiniteError(progress.step)

    def gather(self, progress: TrainingProgress) -> None:
        """A held-out loss is reported apart from the loss of the same step; both make one metric row."""
        if self.latest is not None and self.latest.step == progress.step:
            known = {item.name: getattr(self.latest, item.name) for item in fields(progress)}
            progress = replace(progress, **{name: v for name, v in known.items() if getattr(progress, name) is None})
        self.latest = progress
        self.pending.append(progress)

    def flush(self) -> None:
        """Writes what is pending; a database that is locked for long costs a later update, never the training."""
        if not self.pending:
            return
        self.written_at = time.monotonic()
        try:
            self.write_pending()
        except TRANSIENT as exc:
            logger.warning("%s: the database is busy, progress is kept for later: %s", self.run.name, exc)
            close_broken_connections()
            # A server that cannot be reached costs up to 5 s to ask.
            self.written_at += RETRY_SECONDS
        else:
            self.pending = []

    def write_pending(self) -> None:
        steps = {progress.step: progress for progress in self.pending}
        with transaction.atomic():
            self.note_progress(self.pending[-1])
            write_metrics(self.run, list(steps.values()))
            for progress in self.pending:
                publish("training_progress", self.progress_event(progress), run_kind=self.run.KIND, run_id=self.run.pk)

    def note_progress(self, progress: TrainingProgress) -> None:
        # A step without a held-out loss does not erase the last one that was measured.
        measured = {name: getattr(progress, name) for name in METRIC_FIELDS if getattr(progress, name) is not None}
        self.run.note(
            current_step=progress.step,
            total_steps=progress.total_steps,
            eta_seconds=progress.eta_seconds,
            **measured,
        )

    def progress_event(self, progress: TrainingProgress) -> TrainingProgressEvent:
        return {
            "run_id": self.run.pk,
            "step": progress.step,
            "total_steps": progress.total_steps,
            "epoch": progress.epoch,
            "loss": progress.loss,
            "lr": progress.learning_rate,
            "grad_norm": progress.grad_norm,
            "eval_loss": progress.eval_loss,
            "eval_exact_match": progress.eval_exact_match,
            "eval_token_f1": progress.eval_token_f1,
            "eta": progress.eta_seconds,
        }


def write_metrics(run: TrainingRun, steps: list[TrainingProgress]) -> None:
    rows = [
        TrainingMetric(run=run, step=progress.step, **{name: getattr(progress, name) for name in METRIC_FIELDS})
        for progress in steps
    ]
    TrainingMetric.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=["run", "step"], update_fields=list(METRIC_FIELDS)
    )


def summarise_reasons(reasons: dict[int, str], *, shown: int = 5) -> list[str]:
    """One sentence per reason: how many rows, and the first of them by number."""
    by_reason: dict[str, list[int]] = {}
    for index, reason in sorted(reasons.items()):
        by_reason.setdefault(reason, []).append(index)
    return [
        f"{len(rows)} row{'s' if len(rows) > 1 else ''} skipped: {reason} (row{'s' if len(rows) > 1 else ''} "
        f"{', '.join(map(str, rows[:shown]))}{', ...' if len(rows) > shown else ''})"
        for reason, rows in by_reason.items()
    ]
