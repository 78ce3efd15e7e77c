"""`manage.py evaluate`: base and adapters over one dataset, side by side, through the same services as the API."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation_app.exports import csv_chunks, joined_csv_chunks
from evaluation_app.models import EvaluationRun
from evaluation_app.plans import EvaluationRequest
from evaluation_app.selectors import get_run
from evaluation_app.serializers import EvaluationRunDetailSerializer
from evaluation_app.services import start_evaluations
from evaluation_app.waiting import RunsWait
from ftproject.core.errors import ProductError
from ftproject.core.storage import publish_file

FIGURES = {
    "Exact match": "exact_match_accuracy",
    "Token precision": "token_precision",
    "Token recall": "token_recall",
    "Token F1": "token_f1",
}
BASE = "base"
FAILED = 1


class Command(BaseCommand):
    help = "Evaluates base and adapters on a dataset; the exit code is 0 only when every run completed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dataset", type=int, metavar="ID", help="dataset (default: the current one)")
        parser.add_argument("--base", action="store_true", help="evaluate the base model")
        parser.add_argument(
            "--adapter", action="append", default=[], metavar="NAME", help="adapter by name, path or id; repeatable"
        )
        parser.add_argument("--limit", type=positive, metavar="N", help="rows from the top (default: all)")
        parser.add_argument("--rows", choices=EvaluationRun.Rows.values, default=EvaluationRun.Rows.ALL.value)
        parser.add_argument(
            "--split-adapter", metavar="NAME", help="whose split the base run is judged on (default: the first adapter)"
        )
        parser.add_argument("--model", metavar="NAME", help="base model of the base run (default: the first adapter's)")
        parser.add_argument("--classification", action="store_true", help="add classification figures")
        parser.add_argument("--positive-label", metavar="LABEL", help="the positive one of two labels")
        parser.add_argument(
            "--output", type=Path, metavar="FILE.csv", help="write predictions beside the dataset's rows"
        )
        parser.add_argument("--raw", action="store_true", help="no escape of formula cells in --output")
        parser.add_argument("--json", action="store_true", help="print the runs as JSON instead of a table")

    def handle(self, *args: Any, **options: Any) -> None:
        requests = requests_of(options)
        check_output(options["output"])
        try:
            started = start_evaluations(requests=list(requests.values()))
        except ProductError as error:
            raise CommandError(describe(error)) from error
        RunsWait(dict(zip(requests, started, strict=True)), Console(stderr=True)).until_ended()
        runs = {name: get_run(run_id=run.pk) for name, run in zip(requests, started, strict=True)}
        self.show(runs, as_json=options["json"])
        failed = [name for name, run in runs.items() if run.status != EvaluationRun.Status.COMPLETED]
        if failed:
            self.stderr.write(self.style.ERROR(f"Not completed: {', '.join(failed)}"))
            sys.exit(FAILED)
        if options["output"]:
            write_output(options["output"], runs, raw=options["raw"])
            self.stderr.write(f"Results: {options['output']}")

    def show(self, runs: dict[str, EvaluationRun], *, as_json: bool) -> None:
        if as_json:
            details = [EvaluationRunDetailSerializer(run).data for run in runs.values()]
            self.stdout.write(json.dumps({"runs": details}, indent=2, ensure_ascii=False, allow_nan=False))
            return
        console = Console()
        with console.capture() as captured:
            console.print(results_table(runs))
        self.stdout.write(captured.get())


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def requests_of(options: dict[str, Any]) -> dict[str, EvaluationRequest]:
    """One request per model, by the name that table and columns use."""
    adapters = list(dict.fromkeys(options["adapter"]))
    if not adapters and not options["base"]:
        raise CommandError("Say what to evaluate: --base, --adapter NAME, or both.")
    shared = {
        "dataset_id": options["dataset"],
        "sample_limit": options["limit"],
        "rows": options["rows"],
        "classification_mode": options["classification"],
        "positive_label": options["positive_label"],
    }
    requests = {Path(name).name: EvaluationRequest(adapter_path=name, **shared) for name in adapters}
    if len(requests) != len(adapters):
        raise CommandError("One adapter is named twice.")
    if not options["base"]:
        return requests
    split = options["split_adapter"] or next(iter(adapters), None)
    base = EvaluationRequest(split_adapter=split, model_name=options["model"], **shared)
    return {BASE: base, **requests}


def check_output(path: Path | None) -> None:
    """Before the work, not after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise CommandError(f"{path} cannot be written: give a file in a folder that exists.")


def describe(error: ProductError) -> str:
    return "\n".join(line for line in (error.detail, error.hint) if line)


def write_output(path: Path, runs: dict[str, EvaluationRun], *, raw: bool) -> None:
    chunks = csv_chunks(*runs.values(), raw=raw) if len(runs) == 1 else joined_csv_chunks(runs, raw=raw)
    with publish_file(path.absolute()) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(chunks)


def results_table(runs: dict[str, EvaluationRun]) -> Table:
    first = next(iter(runs.values()))
    table = Table(title=Text(f"{first.dataset.filename}, rows: {first.rows}"))
    for column in ("Model", "Run", "Status", "Rows", "Skipped", *FIGURES, "Unseen rows"):
        table.add_column(column, justify="left" if column in {"Model", "Status"} else "right")
    for name, run in runs.items():
        unseen = (run.metrics.get("unseen") or {}).get("exact_match_accuracy")
        figures = [percent(getattr(run, field)) for field in FIGURES.values()]
        counts = [str(run.num_samples or run.current), "-" if run.num_skipped is None else str(run.num_skipped)]
        table.add_row(name, str(run.pk), Text(run.error or run.status), *counts, *figures, percent(unseen))
    return table


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
