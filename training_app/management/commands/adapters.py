"""`manage.py adapters`: list, import, download and delete adapters through the API's own services."""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from django.core.serializers.json import DjangoJSONEncoder
from rich.console import Console
from rich.table import Table

from ftproject.core.commands import AuditedCommand
from ftproject.core.errors import ProductError
from ftproject.core.storage import publish_file
from training_app.adapter_services import delete_adapter, iter_adapter_zip
from training_app.import_services import adapter_import
from training_app.management.commands.train import describe
from training_app.models import Adapter
from training_app.selectors import find_adapter, find_adapter_row, list_adapters
from training_app.serializers import AdapterDetailSerializer

EFFECTIVE = {True: "yes", False: "no", None: "not measured"}


class Command(AuditedCommand):
    help = "Lists, imports, downloads and deletes adapters; merge_adapter merges one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="list|import|download|delete")
        listing = actions.add_parser("list", help="all adapters, oldest first")
        listing.add_argument("--json", action="store_true")
        taking = actions.add_parser("import", help="take a PEFT folder as a zip")
        taking.add_argument("file", type=Path, metavar="FILE.zip")
        taking.add_argument("--name", help="default: the folder's name in the zip, else the file's")
        taking.add_argument("--base-model-name", help="where its config names a folder of another machine")
        giving = actions.add_parser("download", help="write an adapter's folder as a zip")
        giving.add_argument("adapter", help="name, path or id")
        giving.add_argument("file", type=Path, nargs="?", metavar="FILE.zip", help="default: <name>.zip")
        removing = actions.add_parser("delete", help="delete an adapter that nothing refers to")
        removing.add_argument("adapter", help="name, path or id")

    def changes_something(self, options: dict[str, Any]) -> bool:
        return options["action"] in {"import", "delete"}

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"do_{options['action']}")(options)
        except ProductError as error:
            raise CommandError(describe(error)) from error
        except OSError as error:
            raise CommandError(str(error)) from error

    def do_list(self, options: dict[str, Any]) -> None:
        adapters = list_adapters()
        if options["json"]:
            found = AdapterDetailSerializer(adapters, many=True).data
            self.stdout.write(json.dumps(found, indent=2, ensure_ascii=False, cls=DjangoJSONEncoder))
        else:
            Console(file=self.stdout).print(table_of(adapters))  # type: ignore[arg-type]  # Django's wrapper writes text

    def do_import(self, options: dict[str, Any]) -> None:
        file: Path = options["file"]
        imported = adapter_import(
            file=file, filename=file.name, name=options["name"], base_model_name=options["base_model_name"]
        )
        for warning in imported.facts.warnings:
            self.stderr.write(f"Note: {warning}")
        self.stdout.write(str(imported.adapter.path))

    def do_download(self, options: dict[str, Any]) -> None:
        adapter = find_adapter(reference=options["adapter"])
        target: Path = options["file"] or Path(f"{adapter.name}.zip")
        with publish_file(target) as partial, partial.open("wb") as out:
            for chunk in iter_adapter_zip(adapter.path):
                out.write(chunk)
        self.stdout.write(str(target))

    def do_delete(self, options: dict[str, Any]) -> None:
        adapter = find_adapter_row(reference=options["adapter"])
        name = adapter.name
        delete_adapter(adapter=adapter)
        self.stdout.write(f"{name} is deleted.")


def table_of(adapters: list[Adapter]) -> Table:
    table = Table("id", "name", "base model", "r", "MB", "effective", "run", "created")
    for adapter in adapters:
        run = str(adapter.run_id or "imported")
        created = adapter.created_at.strftime("%Y-%m-%d %H:%M")
        size = f"{adapter.size_bytes / 2**20:.1f}"
        facts = (
            adapter.name,
            adapter.base_model_name,
            str(adapter.r),
            size,
            EFFECTIVE[adapter.effective],
            run,
            created,
        )
        table.add_row(str(adapter.pk), *facts)
    return table
