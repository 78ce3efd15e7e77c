"""`manage.py restore FOLDER`: puts a backup into the data directory of QWEN3VL_DATA_DIR, which must be empty."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser

from ftproject.core.commands import AuditedCommand
from ftproject.system.restoring import restore_backup


class Command(AuditedCommand):
    help = "Puts a backup into the (empty) data directory. Runs that were running are ended; those that waited wait."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("source", type=Path, help="a folder that `backup` has made")

    def handle(self, *args: Any, **options: Any) -> None:
        restored = restore_backup(options["source"])
        files, made = len(restored.backup.files), restored.backup.created_at
        self.stdout.write(f"{settings.DATA_DIR}: {files} files of the backup of {made}.")
        for name in restored.ended:
            self.stdout.write(f"  {name} was running then: it is `error` now, and can be resumed where it had saved")
        for name in restored.waiting:
            self.stdout.write(f"  {name} waits, and begins when the server starts: stop it first if it ran elsewhere")
