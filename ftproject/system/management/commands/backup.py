"""`manage.py backup FOLDER`: copies the data directory, also while the server runs."""

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from ftproject.core.commands import AuditedCommand
from ftproject.system.backup import make_backup


class Command(AuditedCommand):
    help = "Copies the data directory into a folder that is not there yet; `restore` puts it back. The server may run."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("target", type=Path, help="a folder outside the data directory, best on another disk")
        parser.add_argument(
            "--link",
            action="store_true",
            help="share the bytes of files that never change, on the same disk: quick, but no help when the disk dies",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        backup = make_backup(options["target"], link=options["link"])
        megabytes = backup.size_bytes / 2**20
        self.stdout.write(f"{options['target']}: {len(backup.files)} files, {megabytes:,.1f} MB.")
        self.stdout.write("It holds the secret key: keep it as private as the data directory.")
