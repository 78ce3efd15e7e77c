"""Puts a backup into an empty data directory: the files first, the database last, then what was running is ended."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connections

from ftproject.core.jobs import Job, active_jobs, queued_jobs
from ftproject.core.models import GpuLease
from ftproject.core.storage import PARTIAL
from ftproject.system.backup import DATABASE, FORMAT, MANIFEST, SECRET, Backup
from ftproject.system.serving import ring_bells, sole_server


@dataclass(frozen=True)
class Restored:
    """What became of the runs of the backup."""

    backup: Backup
    ended: list[str]
    waiting: list[str]


def restore_backup(source: Path) -> Restored:
    """Refuses a backup that is not whole, and a directory that holds data; one that was cut off can be made again."""
    backup = read_backup(source)
    with sole_server("(a restore)"):
        require_empty()
        for name in backup.files:
            if name != DATABASE:
                copy_into_place(source / name, Path(settings.DATA_DIR) / name)
        os.sync()
        copy_into_place(source / DATABASE, Path(settings.DATA_DIR) / DATABASE)
        (Path(settings.DATA_DIR) / SECRET).chmod(0o600)
        return settle(backup)


def read_backup(source: Path) -> Backup:
    try:
        backup = Backup(**json.loads((source / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CommandError(f"{source} is no backup: {error}") from None
    if backup.format != FORMAT:
        raise CommandError(f"{source} is of another version of this product: format {backup.format}, not {FORMAT}.")
    for name, size in backup.files.items():
        path = source / name
        if not path.resolve().is_relative_to(source.resolve()) or not path.is_file() or path.stat().st_size != size:
            raise CommandError(f"{source} is damaged: {name} is missing or has another size.")
    return backup


def require_empty() -> None:
    """Files without a database are what an earlier restore left that was cut off."""
    if settings.DATABASES["default"]["ENGINE"] != "django.db.backends.sqlite3":
        raise CommandError("This puts SQLite back. For PostgreSQL see docs/operations.md.")
    path = Path(settings.DATA_DIR) / DATABASE
    if path.exists():
        hint = "Name an empty one by QWEN3VL_DATA_DIR, or move that file away."
        raise CommandError(f"{settings.DATA_DIR} holds a database already. {hint}")


def copy_into_place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{PARTIAL}{target.name}")
    shutil.copy2(source, partial)
    partial.replace(target)


def settle(backup: Backup) -> Restored:
    """The processes of the backup's moment are not those of this machine: nothing of it runs, nobody has the GPU."""
    connections.close_all()
    call_command("migrate", verbosity=0, interactive=False)
    reason = f"It was running when the backup was made ({backup.created_at}); what it had saved by then is here."
    ended = [
        job for job in [*active_jobs(), *active_jobs(needs_gpu=False)] if job.finish(Job.Status.ERROR, error=reason)
    ]
    GpuLease.objects.update(holder="", token="", heartbeat_at=None, wanted_by="")
    ring_bells()
    waiting = [*queued_jobs(), *queued_jobs(needs_gpu=False)]
    return Restored(backup, [job.name for job in ended], [job.name for job in waiting])
