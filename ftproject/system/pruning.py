"""What of a data directory may go: old events, checkpoints, cached images, work folders; with a preview of each."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from django.db.models import F, Q, QuerySet, Sum, TextField
from django.db.models.functions import Cast, Length
from django.utils import timezone

from datasets_app.models import Dataset
from ftproject.core.errors import ConflictError
from ftproject.core.jobs import Job, active_jobs, job_models
from ftproject.core.models import Event
from ftproject.core.storage import LEFTOVER_SECONDS, data_path, datasets_dir, runs_dir
from ftproject.system.image_pruning import ImagesInUse, prunable_images
from training_app.checkpoints import CHECKPOINTS_FOLDER, checkpoints_dir, folder_bytes, needed_by_later_run
from training_app.models import TrainingRun
from training_app.resume import delete_checkpoints


@dataclass(frozen=True)
class Prunable:
    """One thing that may go, what it takes, and its removal, which looks once more whether it still may."""

    category: str
    name: str
    size_bytes: int
    remove: Callable[[], object]
    count: int = 1


def old_events(before: datetime) -> Iterator[Prunable]:
    """Of ended runs only: a socket that comes back to a running one asks for all of them."""
    events = events_before(before)
    count = events.count()
    if count:
        size = events.aggregate(size=Sum(Length(Cast(F("data"), TextField()))))["size"] or 0
        yield Prunable(
            "events", f"events before {before:%Y-%m-%d}", size, lambda: events_before(before).delete(), count
        )


def events_before(before: datetime) -> QuerySet[Event]:
    unended = Q(pk__in=[])
    for model in job_models():
        numbers = model._default_manager.exclude(status__in=Job.TERMINAL).values_list("pk", flat=True)
        unended |= Q(run_kind=model.KIND, run_id__in=list(numbers))
    return Event.objects.filter(created_at__lt=before).exclude(unended)


def old_checkpoints(before: datetime) -> Iterator[Prunable]:
    """Of runs that ended before and that no later run goes on from."""
    for run in TrainingRun.objects.filter(status__in=Job.TERMINAL, completed_at__lt=before).order_by("pk"):
        folder = checkpoints_dir(run)
        if folder.is_dir() and not needed_by_later_run(run, before):
            yield Prunable(
                "checkpoints", f"of {run.name}", folder_bytes(folder), partial(forget_checkpoints, run, before)
            )


def forget_checkpoints(run: TrainingRun, before: datetime) -> None:
    if not needed_by_later_run(run, before):
        delete_checkpoints(run=run)


def old_run_folders(before: datetime) -> Iterator[Prunable]:
    """Work folders of runs that ended before, but for checkpoints; folders and logs of runs that are gone."""
    for path in [*runs_dir().iterdir(), *data_path("logs", "x").parent.glob("*.log")]:
        kind, _, number = path.stem.rpartition("-")
        model = next((model for model in job_models() if kind == model.KIND), None)
        if model is None or not number.isdecimal():
            continue
        run = model._default_manager.filter(pk=int(number)).first()
        if run is None:
            yield Prunable("runs", path.name, size_of(path), partial(remove, path))
        elif run.is_terminal and run.completed_at and run.completed_at < before and path.is_dir():
            parts = [part for part in path.iterdir() if part.name != CHECKPOINTS_FOLDER]
            if parts:
                size = sum(size_of(part) for part in parts)
                yield Prunable("runs", path.name, size, partial(remove_all, parts))


def size_of(path: Path) -> int:
    return folder_bytes(path) if path.is_dir() else path.stat().st_size


def remove_all(paths: Sequence[Path]) -> None:
    for path in paths:
        remove(path)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def old_images(before: datetime) -> Iterator[Prunable]:
    """Cached images that no dataset names; none while a run is at work, which may be about to use one."""
    if active_jobs() or active_jobs(needs_gpu=False):
        return
    found = list(prunable_images(ImagesInUse.of_all_datasets(), before.timestamp()))
    size = sum(path.stat().st_size for path in found)
    if found:
        yield Prunable("images", "images that no dataset names", size, partial(remove_all, found), len(found))


def lost_tables(_: datetime) -> Iterator[Prunable]:
    """Tables without a dataset: an upload that was cut off at its very end, and was never answered."""
    for path in sorted(datasets_dir().glob("*.parquet")):
        facts = path.stat()
        known = Dataset.objects.filter(sha256=path.stem).exists()
        if not known and facts.st_mtime < time.time() - LEFTOVER_SECONDS:
            yield Prunable("tables", path.name, facts.st_size, partial(remove_lost_table, path))


def remove_lost_table(path: Path) -> None:
    if not Dataset.objects.filter(sha256=path.stem).exists():
        path.unlink(missing_ok=True)


CATEGORIES: dict[str, Callable[[datetime], Iterator[Prunable]]] = {
    "events": old_events,
    "checkpoints": old_checkpoints,
    "images": old_images,
    "runs": old_run_folders,
    "tables": lost_tables,
}


def prunable(categories: Sequence[str], *, days: float) -> list[Prunable]:
    before = timezone.now() - timedelta(days=days)
    return [item for name in categories for item in CATEGORIES[name](before)]


def prune(items: Sequence[Prunable]) -> list[str]:
    """Removes them; the names of those that stayed, because something came to need them meanwhile."""
    kept = []
    for item in items:
        try:
            item.remove()
        except ConflictError as refusal:
            kept.append(f"{item.name}: {refusal.detail}")
    return kept
