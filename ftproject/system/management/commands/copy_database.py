"""`manage.py copy_database`: everything from the database in use into another, empty one (SQLite and PostgreSQL)."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from ftproject.system.database_copy import copy_everything, opened
from ftproject.system.serving import sole_server


class Command(BaseCommand):
    help = (
        "Copies all rows from the database in use into an empty one, e.g. postgres://user:password@host/name or "
        "sqlite:////path/database.sqlite3; all of them or none. Then set QWEN3VL_DATABASE_URL to it. "
        "Files of the data directory stay where they are. The server must not run."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("target", help="URL of the empty database")

    def handle(self, *args: Any, **options: Any) -> None:
        with sole_server("copy_database"), opened(options["target"], settings.DATA_DIR) as alias:
            total = copy_everything("default", alias, self.tell)
        self.stdout.write(f"{total} rows copied and counted. Set QWEN3VL_DATABASE_URL to the target, then start.")

    def tell(self, table: str, count: int) -> None:
        if count:
            self.stdout.write(f"{count:>10} {table}")
