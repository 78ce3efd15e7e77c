"""Copies a data directory while it is in use: a snapshot of the database first, then the files that its rows name.

Files are published before their row and removed after it, and never change in between. So whatever a row of the
snapshot names was there when the snapshot was made; what has been deleted since is noticed as missing, and a new
snapshot, in which its row is gone too, is made (docs/operations.md).
"""

import contextlib
import json
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from django.conf import settings
from django.core.management import CommandError
from django.db import connection

from ftproject.core.storage import PARTIAL
from ftproject.engine.adapters import CONFIG_FILE, WEIGHTS_FILE
from ftproject.engine.checkpoints import CHECKPOINT_PREFIX

DATABASE, MANIFEST, SECRET = "database.sqlite3", "backup.json", "secret_key"
FORMAT = 1
# Each but the first is needed only when something was deleted during the one before.
ATTEMPTS = 5
CHECKPOINTS = "checkpoints"
Copy = Callable[[str, str], object]


@dataclass(frozen=True)
class Backup:
    """What a backup holds; `files` maps each path to its size."""

    format: int
    version: str
    created_at: str
    files: dict[str, int]

    @property
    def size_bytes(self) -> int:
        return sum(self.files.values())


@dataclass(frozen=True)
class Named:
    """What the rows of a snapshot name."""

    adapters: set[str]
    tables: set[str]
    models: set[str]
    images: set[str]
    runs: set[str]


def make_backup(target: Path, *, link: bool = False) -> Backup:
    """The data directory as a folder that appears when it is complete; `link` shares what never changes."""
    require_place(target)
    folder = target.with_name(f"{PARTIAL}{target.name}-{uuid.uuid4().hex[:8]}")
    folder.mkdir(mode=0o700, parents=True)
    try:
        copy_all(folder, link_or_copy if link else shutil.copy2)
        backup = write_manifest(folder)
        os.sync()
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return backup


def require_place(target: Path) -> None:
    if connection.vendor != "sqlite":
        raise CommandError("This copies SQLite. For PostgreSQL see docs/operations.md: pg_dump, then the folder.")
    if target.exists():
        raise CommandError(f"{target} is there already. Name a folder that is not.")
    if target.resolve().is_relative_to(Path(settings.DATA_DIR).resolve()):
        raise CommandError(f"{target} lies in the data directory itself. Name a folder outside, best on another disk.")


def copy_all(folder: Path, copy: Copy) -> None:
    for _ in range(ATTEMPTS):
        snapshot_database(folder / DATABASE)
        named = named_by(folder / DATABASE)
        for unit in units(named):
            copy_unit(unit, folder / unit.relative_to(settings.DATA_DIR), copy)
        missing = missing_of(named, folder)
        if not missing:
            return
    raise CommandError(
        f"Rows name files that are not there ({', '.join(missing[:5])}): `manage.py doctor` says what to do about them."
    )


def snapshot_database(target: Path) -> None:
    """SQLite's own online copy: consistent, and writers go on."""
    target.unlink(missing_ok=True)
    connection.ensure_connection()
    with contextlib.closing(sqlite3.connect(target)) as copy:
        connection.connection.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        if copy.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise CommandError("The database is damaged: `manage.py doctor` says what to do.")


def named_by(database: Path) -> Named:
    with contextlib.closing(sqlite3.connect(database)) as rows:

        def column(query: str) -> set[str]:
            return {str(row[0]) for row in rows.execute(query)}

        return Named(
            adapters=column("SELECT name FROM training_app_adapter"),
            tables=column("SELECT sha256 || '.parquet' FROM datasets_app_dataset"),
            models=column("SELECT model_name FROM training_app_adaptermerge WHERE status = 'completed'"),
            images=column("SELECT DISTINCT digest FROM datasets_app_imagearchiveentry"),
            runs=column("SELECT 'training-' || id FROM training_app_trainingrun"),
        )


def units(named: Named) -> Iterator[Path]:
    """Files and folders that are copied whole or not at all."""
    data = Path(settings.DATA_DIR)
    yield data / SECRET
    yield from (data / "adapters" / name for name in sorted(named.adapters))
    yield from (data / "datasets" / name for name in sorted(named.tables))
    yield from visible(data / "models")
    yield from (path for path in walk(data / "images"))
    for folder in (data / "runs" / name for name in sorted(named.runs)):
        yield from (path for path in visible(folder) if path.is_dir() and path.name != CHECKPOINTS)
        yield from (path for path in visible(folder / CHECKPOINTS) if path.name.startswith(CHECKPOINT_PREFIX))
    yield from walk(data / "logs")
    yield from walk(data / "exports")


def visible(folder: Path) -> list[Path]:
    """What is not hidden; hidden is what is being written or deleted."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return []


def walk(folder: Path) -> Iterator[Path]:
    for path in visible(folder):
        if path.is_dir():
            yield from walk(path)
        else:
            yield path


def copy_unit(source: Path, target: Path, copy: Copy) -> None:
    """A unit that is there already stays; one that vanishes meanwhile leaves nothing."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{PARTIAL}{target.name}")
    try:
        if source.is_dir():
            shutil.copytree(source, partial, copy_function=copy)
        else:
            # Logs and the key are written to: never by link.
            (shutil.copy2 if source.parent.name in {"logs", Path(settings.DATA_DIR).name} else copy)(
                str(source), str(partial)
            )
        partial.rename(target)
    except (FileNotFoundError, shutil.Error):
        if source.exists():
            raise
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def missing_of(named: Named, folder: Path) -> list[str]:
    """What the snapshot names and the backup lacks."""
    wanted = [f"adapters/{name}/{part}" for name in named.adapters for part in (CONFIG_FILE, WEIGHTS_FILE)]
    wanted += [f"datasets/{name}" for name in named.tables] + [f"models/{name}" for name in named.models]
    wanted += [f"images/{digest[:2]}/{digest}" for digest in named.images]
    return sorted(name for name in wanted if not (folder / name).exists())


def write_manifest(folder: Path) -> Backup:
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    backup = Backup(FORMAT, settings.VERSION, datetime.now(UTC).isoformat(timespec="seconds"), files)
    (folder / MANIFEST).write_text(json.dumps(asdict(backup), indent=1), encoding="utf-8")
    return backup
