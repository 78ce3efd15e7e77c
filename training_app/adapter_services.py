"""Writes of adapters: their names, the row beside the published folder, deletion, the download."""

import glob
import hashlib
import io
import shutil
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import ProtectedError

from ftproject.core.errors import ConflictError
from ftproject.core.jobs import Job
from ftproject.core.storage import adapters_dir, partial_path
from ftproject.engine.adapters import WEIGHTS_FILE, finite, read_adapter_info
from training_app.models import Adapter, TrainingRun

CHUNK_BYTES = 1 << 20


class RunLostError(RuntimeError):
    """The run's row was ended or taken over by somebody else while this process worked on it."""

    is_user_facing = True


def new_adapter_dir(moment: datetime | None = None) -> Path:
    """A free folder name for an adapter made now: adapter_YYYYMMDD_HHMMSS in UTC, with a number when it is taken."""
    stem = (moment or datetime.now(UTC)).strftime("adapter_%Y%m%d_%H%M%S")
    name, number = stem, 1
    while (adapters_dir() / name).exists() or Adapter.objects.filter(name=name).exists():
        number += 1
        name = f"{stem}_{number}"
    return adapters_dir() / name


def complete_training(
    *, run: TrainingRun, folder: Path, effective: bool | None, metrics: dict[str, Any], **facts: Any
) -> Adapter:
    """Registers the published folder and ends the run, both or neither.

    When this fails the folder stays: it may be hours of work, and the run's error names it.
    """
    # An earlier attempt whose connection broke while it committed.
    if known := Adapter.objects.filter(name=folder.name, run=run, run__status=Job.Status.COMPLETED).first():
        return known
    info = read_adapter_info(folder)
    with transaction.atomic():
        adapter = Adapter.objects.create(
            name=folder.name,
            run=run,
            base_model_name=run.model_name,
            r=info.r,
            size_bytes=info.size_bytes,
            sha256=file_sha256(folder / WEIGHTS_FILE),
            effective=effective,
        )
        ended = run.finish(Job.Status.COMPLETED, message=f"Saved {folder.name}", metrics=finite(metrics), **facts)
        if not ended:
            raise RunLostError(f"The run was ended elsewhere before its adapter could be registered; see {folder}.")
    return adapter


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def delete_adapter(*, adapter: Adapter) -> None:
    """Removes an adapter that nothing refers to: the row first, then its folder out of sight, then the files."""
    hidden = partial_path(adapter.path)
    try:
        with transaction.atomic():
            # A merge that starts now waits for this lock, and then finds no adapter.
            Adapter.objects.select_for_update().filter(pk=adapter.pk).first()
            require_not_merging(adapter)
            adapter.delete()
            hide_folder(adapter.path, hidden)
    except ProtectedError as exc:
        users = ", ".join(str(user) for user in sorted(exc.protected_objects, key=str))
        hint = "Delete those runs first: their figures would otherwise speak of an adapter that is gone."
        raise adapter_in_use(adapter, users, hint) from exc
    # A crash here leaves a `.partial-` folder, which the next start sweeps.
    shutil.rmtree(hidden, ignore_errors=True)


def hidden_folder_of(adapter: Adapter) -> Path | None:
    """Where a deletion has put the adapter's folder whose process died before the deletion was committed."""
    for hidden in adapters_dir().glob(f"{glob.escape(partial_path(adapter.path).name[:-8])}*"):
        weights = hidden / WEIGHTS_FILE
        if weights.is_file() and file_sha256(weights) == adapter.sha256:
            return hidden
    return None


def undo_deletion(adapter: Adapter) -> str:
    hidden = hidden_folder_of(adapter)
    if hidden is not None and not adapter.path.exists():
        hidden.rename(adapter.path)
    return f"{adapter.name} is listed as before."


def undo_deletions() -> list[str]:
    """Puts back what was hidden and never deleted; returns the names. Before the sweep, which would finish them."""
    found = [adapter for adapter in Adapter.objects.all() if not adapter.path.exists() and hidden_folder_of(adapter)]
    for adapter in found:
        undo_deletion(adapter)
    return [adapter.name for adapter in found]


def require_not_merging(adapter: Adapter) -> None:
    merges = adapter.merges.exclude(status__in=Job.TERMINAL).order_by("id")
    if users := ", ".join(str(merge) for merge in merges):
        raise adapter_in_use(adapter, users, "Wait for its end, or stop it: POST /api/training/merges/{id}/stop.")


def adapter_in_use(adapter: Adapter, users: str, hint: str) -> ConflictError:
    return ConflictError(f"The adapter {adapter.name} is used by {users}.", code="adapter_in_use", hint=hint)


def hide_folder(path: Path, hidden: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        path.rename(hidden)


class ChunkBuffer(io.RawIOBase):
    """What ZipFile writes to while the response drains it: unseekable, so ZipFile puts sizes behind each file."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.chunks.append(bytes(data))
        return len(data)

    def drain(self) -> Iterator[bytes]:
        taken, self.chunks = self.chunks, []
        yield from taken


def iter_adapter_zip(folder: Path) -> Iterator[bytes]:
    """The folder as a zip in chunks of about 1 MB, stored uncompressed: weights do not shrink."""
    buffer = ChunkBuffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo.from_file(path, f"{folder.name}/{path.relative_to(folder)}", strict_timestamps=False)
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
                    yield from buffer.drain()
    yield from buffer.drain()
