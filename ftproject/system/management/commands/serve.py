"""`manage.py serve`: the whole product in one terminal."""

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ftproject.system.serving import Server


class Command(BaseCommand):
    help = "Serves the API, the events and the GPU queue until Ctrl+C. Migrates first."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default=settings.HOST, help="address to listen on (QWEN3VL_HOST)")
        parser.add_argument("--port", type=int, default=settings.PORT, help="port to listen on (QWEN3VL_PORT)")

    def handle(self, *args: Any, **options: Any) -> None:
        server = Server(options["host"], options["port"], self.stdout.write)
        if server.run():
            raise CommandError(
                "The server ended because one of its processes could not go on; its reason stands above."
            )
