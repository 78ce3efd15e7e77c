"""Checkpoints on disk: written beside and renamed, complete or never chosen, and which job one of them continues."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftproject.engine.adapters import sync_folder
from ftproject.engine.backends.base import TrainingError

CHECKPOINT_PREFIX = "checkpoint-"
WRITING_PREFIX = ".writing-"
MANIFEST_FILE = "checkpoint.json"
MANIFEST_FORMAT = 1
REQUIRED_FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
# What may change between a run and its continuation without changing a weight.
FREE_SETTINGS = frozenset({"save_steps", "save_total_limit", "report_to", "dataloader_num_workers"})


@dataclass(frozen=True)
class JobFacts:
    """What decides a run's weights: its configuration in the shape of a start body, and its rows as hashes."""

    config: Mapping[str, Any]
    backend: str
    device: str
    rows: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: whose it is, and the state of the loop that transformers does not keep."""

    path: Path
    step: int
    total_steps: int
    job: JobFacts
    loop: Mapping[str, Any]


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or None where a file of its manifest is missing or has another size."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        sizes: dict[str, int] = manifest["files"]
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        if manifest["format"] != MANIFEST_FORMAT or not whole or not set(REQUIRED_FILES) <= sizes.keys():
            return None
        return Checkpoint(
            path=folder,
            step=int(manifest["step"]),
            total_steps=int(manifest["total_steps"]),
            job=JobFacts(**manifest["job"]),
            loop=manifest["loop"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def list_checkpoints(work_dir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, by ascending step."""
    found = (read_checkpoint(folder) for folder in work_dir.glob(f"{CHECKPOINT_PREFIX}*"))
    return sorted((item for item in found if item is not None), key=lambda item: item.step)


def latest_checkpoint(work_dir: Path) -> Path | None:
    """The folder of the newest complete checkpoint of a run, to resume from."""
    found = list_checkpoints(work_dir)
    return found[-1].path if found else None


def write_checkpoint(
    work_dir: Path, fill: Callable[[Path], None], *, step: int, total_steps: int, job: JobFacts, loop: Mapping[str, Any]
) -> Path:
    """Lets `fill` write `checkpoint-<step>` below a hidden folder, adds the manifest, syncs and renames it into place.

    Nothing is left when `fill` fails: the checkpoints that were there stay as they are.
    """
    sweep_unfinished(work_dir)
    writing = work_dir / f"{WRITING_PREFIX}{step}"
    folder = writing / f"{CHECKPOINT_PREFIX}{step}"
    target = work_dir / folder.name
    folder.mkdir(parents=True)
    try:
        fill(folder)
        _write_manifest(folder, step=step, total_steps=total_steps, job=job, loop=loop)
        sync_folder(folder)
        if target.exists():  # of an earlier attempt at the same step
            shutil.rmtree(target)
        folder.rename(target)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return target


def _write_manifest(folder: Path, *, step: int, total_steps: int, job: JobFacts, loop: Mapping[str, Any]) -> None:
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    missing = sorted(set(REQUIRED_FILES) - files.keys())
    if missing:
        raise TrainingError("checkpoint_incomplete", f"the checkpoint of step {step} lacks {', '.join(missing)}")
    manifest = {
        "format": MANIFEST_FORMAT,
        "step": step,
        "total_steps": total_steps,
        "job": {name: getattr(job, name) for name in ("config", "backend", "device", "rows", "versions")},
        "loop": dict(loop),
        "files": files,
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2, allow_nan=False), encoding="utf-8")


def sweep_unfinished(work_dir: Path) -> None:
    """Removes what a killed process left half-written."""
    for leftover in work_dir.glob(f"{WRITING_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def drop_old_checkpoints(work_dir: Path, *, keep: int) -> None:
    """Removes all but the newest `keep` complete checkpoints, and every incomplete one older than them."""
    kept = {item.path for item in list_checkpoints(work_dir)[-keep:]}
    for folder in work_dir.glob(f"{CHECKPOINT_PREFIX}*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def adopt_checkpoint(source: Path, work_dir: Path) -> Checkpoint:
    """The checkpoint as one of `work_dir`: linked, or copied where links do not reach, so that it outlives its run.

    Raises TrainingError checkpoint_incomplete.
    """
    if read_checkpoint(source) is None:
        raise TrainingError("checkpoint_incomplete", f"{source.name} is not a complete checkpoint")
    sweep_unfinished(work_dir)
    target = work_dir / source.name
    if source.resolve() != target.resolve() and read_checkpoint(target) is None:
        writing = work_dir / f"{WRITING_PREFIX}{source.name}"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, writing, copy_function=_link_or_copy)
        writing.rename(target)
    adopted = read_checkpoint(target)
    if adopted is None:
        raise TrainingError("checkpoint_incomplete", f"{source.name} could not be taken over")
    return adopted


def _link_or_copy(source: str, target: str) -> None:
    # Nothing writes into a published checkpoint, so both names may share the bytes.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def continuation_problem(checkpoint: Checkpoint, job: JobFacts) -> str | None:
    """Why the checkpoint does not continue this job, or None. Rows are compared when both sides know them."""
    changed = changed_settings(checkpoint.job.config, job.config)
    if changed:
        return f"the settings are not those of the checkpoint: {'; '.join(changed)}"
    if checkpoint.job.backend != job.backend:
        return f"the checkpoint was made by the backend {checkpoint.job.backend}, not by {job.backend}"
    before, now = checkpoint.job.rows, job.rows
    for name, words in (("trained", "training"), ("heldout", "held-out")):
        others = f"the {words} rows are not those of the checkpoint"
        if before[f"{name}_count"] != now[f"{name}_count"]:
            return f"{others}: {now[f'{name}_count']} rows, not {before[f'{name}_count']}"
        if before[f"{name}_sha256"] != now[f"{name}_sha256"]:
            return f"{others}: their tokens, images or order differ"
    return None


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two configurations in the shape of a start body, but for settings that change no weight.

    A setting that the checkpoint does not know is no difference: it came with a later version of this project.
    """
    changes = []
    for name in sorted(before):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += changed_settings(old, new, f"{path}{name}.")
        elif old != new and name not in FREE_SETTINGS:
            changes.append(f"{path}{name} was {old!r} and is {new!r}")
    return changes


def changed_versions(checkpoint: Checkpoint, job: JobFacts) -> list[str]:
    """Libraries and device that differ: the run goes on, but its weights are not those of an uninterrupted one."""
    before, now = dict(checkpoint.job.versions), dict(job.versions)
    changes = [
        f"{name} {before.get(name)} is now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if checkpoint.job.device != job.device:
        changes.append(f"the device {checkpoint.job.device} is now {job.device}")
    return changes
