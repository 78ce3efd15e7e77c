"""Where the checkpoints of runs lie, which one a continuation goes on from, whether there may be one, and their end."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ftproject.core.storage import run_path, runs_dir
from ftproject.engine.checkpoints import latest_checkpoint, sweep_unfinished
from ftproject.engine.device_rules import automatic_save_steps
from training_app.models import TrainingRun

CHECKPOINTS_FOLDER = "checkpoints"
RESERVE_FILE = "reserve"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, and the run that wrote it."""

    path: Path
    step: int
    owner: TrainingRun


@dataclass(frozen=True)
class Resumability:
    """Whether a run can be continued: the checkpoint, or the code of the refusal; `reason` is a sentence either way."""

    reason: str
    code: str | None = None
    checkpoint: Checkpoint | None = None
    continued_by: int | None = None


def checkpoints_dir(run: TrainingRun) -> Path:
    return run_path(run.KIND, run.pk) / CHECKPOINTS_FOLDER


def reserve_path(run: TrainingRun) -> Path:
    return run_path(run.KIND, run.pk) / RESERVE_FILE


def lineage(run: TrainingRun) -> Iterator[TrainingRun]:
    """The run, the one it goes on from, and so on to the first."""
    ancestor: TrainingRun | None = run
    while ancestor is not None:
        yield ancestor
        ancestor = ancestor.resumed_from


def newest_checkpoint(run: TrainingRun) -> Checkpoint | None:
    """The run's own newest, else the one it was resumed from: a continuation may die before it saved anything."""
    for owner in lineage(run):
        path = latest_checkpoint(checkpoints_dir(owner))
        if path is not None:
            return Checkpoint(path, int(path.name.rpartition("-")[2]), owner)
    return None


def resumability(run: TrainingRun) -> Resumability:
    """What can be said from the row and the folders; the model, the disk and the rows are looked at on resuming."""
    if not run.is_terminal:
        return Resumability(f"Run {run.pk} has not ended.", "run_active")
    if run.status == run.Status.COMPLETED and not was_stopped(run):
        return Resumability("It is complete: nothing is left to do.", "not_resumable")
    if other := living_continuation(run):
        return Resumability(f"Run {other.pk} continues it.", "already_resumed", continued_by=other.pk)
    if other := continuation_beside(run):
        reason = f"Run {other.pk} continues what it went on from."
        return Resumability(reason, "already_resumed", continued_by=other.pk)
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        return Resumability(why_no_checkpoint(run), "not_resumable")
    steps = f" of {run.total_steps}" if run.total_steps else ""
    return Resumability(f"It can go on from step {checkpoint.step}{steps}.", checkpoint=checkpoint)


def was_stopped(run: TrainingRun) -> bool:
    """True for a run that was asked to stop; early stopping by patience ends a run that has got what it looked for."""
    return run.stopped_early and run.metrics.get("ended_by") != "patience"


def living_continuation(run: TrainingRun, *, besides: TrainingRun | None = None) -> TrainingRun | None:
    """A run that goes on from this one, directly or not, and has not failed; `besides` and what follows it left out."""
    for other in run.continuations.all():
        if other == besides:
            continue
        if other.status != other.Status.ERROR:
            return other
        if further := living_continuation(other):
            return further
    return None


def continuation_beside(run: TrainingRun) -> TrainingRun | None:
    """A run that took the place of this failed continuation: once it ends it frees the checkpoints of both."""
    for below in lineage(run):
        if below.resumed_from and (other := living_continuation(below.resumed_from, besides=below)):
            return other
    return None


def heir_of_checkpoints(run: TrainingRun) -> TrainingRun | None:
    """A run that waits or starts and will go on from this one's checkpoint, through others or not.

    It takes the checkpoint over when it has read its rows and loaded its model; until then nobody else has it.
    """
    for other in run.continuations.all():
        if latest_checkpoint(checkpoints_dir(other)) is not None:
            continue
        if not other.is_terminal:
            return other
        if heir := heir_of_checkpoints(other):
            return heir
    return None


def needed_by_later_run(run: TrainingRun, before: datetime) -> bool:
    """Whether a run that goes on from this one has not ended, or ended since and can only be resumed from here."""
    for other in run.continuations.all():
        if latest_checkpoint(checkpoints_dir(other)) is not None:
            continue
        young = other.completed_at is None or other.completed_at >= before
        if (
            not other.is_terminal
            or (young and other.status == other.Status.ERROR)
            or needed_by_later_run(other, before)
        ):
            return True
    return False


def why_no_checkpoint(run: TrainingRun) -> str:
    if run.started_at is None:
        return "It never started: start it again."
    # With epochs the engine decides it when the rows are known, and the configuration holds none.
    every = run.config.get("sft_config", {}).get("save_steps") or automatic_save_steps(run.total_steps or 0)
    if run.current_step >= every:
        return "Its checkpoints are gone."
    return f"It ended at step {run.current_step}, before its first checkpoint."


def free_checkpoints(run: TrainingRun) -> None:
    """Removes the checkpoints of a run that is complete, and of the runs that it went on from."""
    for owner in lineage(run):
        shutil.rmtree(checkpoints_dir(owner), ignore_errors=True)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sweep_runs() -> int:
    """Removes what killed processes left in the folders of ended runs; returns how many checkpoint folders went.

    Half-written checkpoints and reserves, and the checkpoints of runs that are complete or deleted, whose process
    died between its last write to the database and its tidying up. A command may be training beside: its run stays.
    """
    freed = 0
    for folder in runs_dir().glob(f"{TrainingRun.KIND}-*"):
        number = folder.name.rpartition("-")[2]
        run = TrainingRun.objects.filter(pk=number).first() if number.isdigit() else None
        if run is not None and not run.is_terminal:
            continue
        (folder / RESERVE_FILE).unlink(missing_ok=True)
        checkpoints = folder / CHECKPOINTS_FOLDER
        sweep_unfinished(checkpoints)
        wanted = run is not None and (run.status == run.Status.ERROR or was_stopped(run))
        if checkpoints.is_dir() and not wanted:
            shutil.rmtree(checkpoints, ignore_errors=True)
            freed += 1
    return freed
