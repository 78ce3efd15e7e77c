"""`manage.py import_dataset`: stores a file of this machine as the current dataset and, if asked, maps its columns."""

from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser

from datasets_app.models import Dataset
from datasets_app.selectors import suggestion_for
from datasets_app.services import dataset_import, mapping_set
from ftproject.core.commands import AuditedCommand
from ftproject.core.errors import InvalidInputError, ProductError


class Command(AuditedCommand):
    help = "Import a CSV, TSV, JSONL or Parquet file as the current dataset."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", type=Path)
        parser.add_argument("--prompt-column")
        parser.add_argument("--response-column")
        parser.add_argument("--ground-truth-column")
        parser.add_argument("--image-column", action="append", dest="image_url_columns", metavar="COLUMN")
        parser.add_argument("--mandatory-column", action="append", dest="mandatory_columns", metavar="COLUMN")
        parser.add_argument("--image-separator")
        parser.add_argument(
            "--map-automatically", action="store_true", help="guess what is not given from names and content"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            dataset = dataset_import(path=options["path"])
            self.stdout.write(f"dataset {dataset.pk}: {dataset.filename}, {dataset.num_rows} rows")
            fields = mapping_fields(dataset, options)
            if fields:
                mapping = mapping_set(dataset=dataset, **fields)
                self.stdout.write(f"mapping {mapping.version}: {mapping.prompt_column} -> {mapping.response_column}")
        except ProductError as exc:
            raise CommandError(f"{exc.detail} {exc.hint}".strip()) from exc


def mapping_fields(dataset: Dataset, options: dict[str, Any]) -> dict[str, Any]:
    """What the options say, on top of the suggestion when it was asked for; empty when there is nothing to map."""
    names = (
        "prompt_column",
        "response_column",
        "ground_truth_column",
        "image_url_columns",
        "mandatory_columns",
        "image_separator",
    )
    given = {name: options[name] for name in names if options[name] is not None}
    fields = {**((suggestion_for(dataset=dataset) or {}) if options["map_automatically"] else {}), **given}
    if (fields or options["map_automatically"]) and not {"prompt_column", "response_column"} <= fields.keys():
        raise InvalidInputError(
            "The dataset is imported, but a mapping needs both --prompt-column and --response-column.",
            hint=f"Columns: {', '.join(dataset.columns)}.",
        )
    return fields
