"""Looks for what nothing refers to: half-written files, folders without rows, logs of runs that are gone."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from datasets_app.models import Dataset
from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job, job_models
from ftproject.core.storage import (
    LEFTOVER_SECONDS,
    adapters_dir,
    data_path,
    datasets_dir,
    half_written,
    models_dir,
    runs_dir,
    sweep_partials,
)
from ftproject.engine.adapters import AdapterError, read_json
from ftproject.engine.checkpoints import WRITING_PREFIX
from ftproject.system.doctor.findings import Finding
from training_app.adoption import adapter_adopt
from training_app.checkpoints import CHECKPOINTS_FOLDER, RESERVE_FILE, sweep_runs
from training_app.models import Adapter, AdapterMerge, TrainingRun

SHOWN = 5


def named(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")


def check_half_written() -> Iterator[Finding]:
    old = [path for path in half_written() if path.stat().st_mtime < time.time() - LEFTOVER_SECONDS]
    if old:
        message = f"{len(old)} half-written files and folders of killed processes lie about ({named(old)})."
        yield Finding("warning", "half_written", message, "The next start of the server sweeps them.", sweep)


def sweep() -> str:
    return f"{sweep_partials()} were removed."


def check_run_folders() -> Iterator[Finding]:
    left = [folder for folder in runs_dir().glob(f"{TrainingRun.KIND}-*") if has_leftovers(folder)]
    if left:
        message = f"Killed runs have left unfinished checkpoints or reserved space ({named(left)})."
        yield Finding("warning", "run_leftovers", message, "The next start of the server sweeps them.", tidy)
    known = {(model.KIND, pk) for model in job_models() for pk in model._default_manager.values_list("pk", flat=True)}
    lost = [path for path in runs_dir().iterdir() if (run := run_of(path.name)) and run not in known]
    logs = [
        path for path in data_path("logs", "x").parent.glob("*.log") if (run := run_of(path.stem)) and run not in known
    ]
    if lost or logs:
        message = f"{len(lost)} folders and {len(logs)} logs belong to runs that are gone ({named([*lost, *logs])})."
        yield Finding("info", "runs_gone", message, "`manage.py prune runs` shows and removes them.")


def has_leftovers(folder: Path) -> bool:
    number = folder.name.rpartition("-")[2]
    run = TrainingRun.objects.filter(pk=number).first() if number.isdecimal() else None
    if run is not None and not run.is_terminal:
        return False
    writing = (folder / CHECKPOINTS_FOLDER).glob(f"{WRITING_PREFIX}*")
    return (folder / RESERVE_FILE).exists() or next(writing, None) is not None


def tidy() -> str:
    sweep_runs()
    return "The folders of ended runs are tidy."


def run_of(name: str) -> tuple[str, int] | None:
    kind, _, number = name.rpartition("-")
    known = any(kind == model.KIND for model in job_models())
    return (kind, int(number)) if known and number.isdecimal() else None


def check_tables() -> Iterator[Finding]:
    known = set(Dataset.objects.values_list("sha256", flat=True))
    lost = [path for path in sorted(datasets_dir().glob("*.parquet")) if path.stem not in known]
    if lost:
        message = f"{len(lost)} tables belong to no dataset: uploads that were cut off at their end ({named(lost)})."
        remedy = "Upload those files again, and they take their place; or remove them: `manage.py prune tables`."
        yield Finding("warning", "table_unlisted", message, remedy)


def check_adapter_folders() -> Iterator[Finding]:
    """Not swept: a folder may be a night's work whose row could not be written."""
    known = set(Adapter.objects.values_list("name", flat=True))
    busy = TrainingRun.objects.filter(status__in=Job.ACTIVE).exists()
    for folder in sorted(adapters_dir().iterdir()):
        if folder.name.startswith(".") or folder.name in known or not folder.is_dir():
            continue
        message = f"The folder adapters/{folder.name} is no listed adapter: its process died before it was listed."
        remedy = "`manage.py doctor --fix` examines and lists it. Until then its name is taken; or remove the folder."
        yield Finding("warning", "adapter_unlisted", message, remedy, None if busy else partial(adopt, folder.name))


def adopt(name: str) -> str:
    try:
        return f"{adapter_adopt(name=name).name} is listed."
    except ProductError as error:
        return f"{name} is left as it is. {error.detail}"


def check_model_folders() -> Iterator[Finding]:
    known = set(AdapterMerge.objects.filter(status=Job.Status.COMPLETED).values_list("model_name", flat=True))
    for folder in sorted(models_dir().iterdir()):
        if folder.name.startswith(".") or folder.name in known or not (folder / "provenance.json").is_file():
            continue
        try:
            merge = read_json(folder / "provenance.json").get("merge_id")
        except AdapterError:
            continue
        if merge is not None:
            message = f"The model models/{folder.name} is complete, but its merge {merge} is not."
            remedy = "It can be used by its name; or remove the folder, and the name is free again."
            yield Finding("info", "model_unlisted", message, remedy)
