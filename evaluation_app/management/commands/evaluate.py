"""`manage.py evaluate`: base and adapters over one dataset, side by side, through the same services as the API."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation_app.exports import csv_chunks, joined_csv_chunks
from evaluation_app.models import EvaluationRun
from evaluation_app.plans import EvaluationRequest
from evaluation_app.scoring_arguments import add_scoring_arguments, scoring_fields
from evaluation_app.selectors import get_run
from evaluation_app.serializers import EvaluationRunDetailSerializer
from evaluation_app.services import start_evaluations, stop_evaluation
from ftproject.core.errors import ProductError
from ftproject.core.storage import publish_file
from ftproject.core.waiting import JobKindView, JobsWait
from ftproject.engine.metrics import METRICS

BASE = "base"
FAILED = 1
WIDTH_IN_FILES = 160
EVALUATION_VIEW = JobKindView(
    bar=lambda run: {"description": run.status, "total": run.total, "completed": run.current},
    stop=lambda run: stop_evaluation(run=run),
    stop_notice="Stopping after this batch; Ctrl+C again leaves at once.",
)


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
        add_scoring_arguments(parser)
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
        JobsWait(dict(zip(requests, started, strict=True)), EVALUATION_VIEW, Console(stderr=True)).until_ended()
        runs = {name: get_run(run_id=run.pk) for name, run in zip(requests, started, strict=True)}
        self.show(runs, as_json=options["json"])
        failed = {name: run for name, run in runs.items() if run.status != EvaluationRun.Status.COMPLETED}
        for name, run in failed.items():
            self.stderr.write(self.style.ERROR(f"{name}: run {run.pk} failed: {run.error}"))
        if failed:
            sys.exit(FAILED)
        if options["output"]:
            write_output(options["output"], runs, raw=options["raw"])
            self.stderr.write(f"Results: {options['output']}")

    def show(self, runs: dict[str, EvaluationRun], *, as_json: bool) -> None:
        if as_json:
            details = [EvaluationRunDetailSerializer(run).data for run in runs.values()]
            self.stdout.write(json.dumps({"runs": details}, indent=2, ensure_ascii=False, allow_nan=False))
            return
        console = Console(width=None if sys.stdout.isatty() else WIDTH_IN_FILES)
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
        **scoring_fields(options),
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
    figures = {title: read for title, read in FIGURES.items() if any(read(run) is not None for run in runs.values())}
    table = Table(box=SIMPLE_HEAD, title=Text(f"{first.dataset.filename}, rows: {first.rows}"))
    table.add_column("Model", no_wrap=True)
    for column in ("Run", "Rows", "Skipped", *figures):
        table.add_column(column, justify="right")
    for name, run in runs.items():
        counts = [str(run.current), "-" if run.num_skipped is None else str(run.num_skipped)]
        table.add_row(Text(name), str(run.pk), *counts, *(percent(read(run)) for read in figures.values()))
    return table


def figure_of(run: EvaluationRun, part: str, name: str) -> float | None:
    figures: dict[str, float | None] = run.metrics.get(part) or {}
    return figures.get(name)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


# Columns of which no run has a figure are left out.
FIGURES: dict[str, Callable[[EvaluationRun], float | None]] = {
    "Exact": lambda run: run.exact_match_accuracy,
    "Unseen": lambda run: figure_of(run, "unseen", "exact_match_accuracy"),
    "Precision": lambda run: run.token_precision,
    "Recall": lambda run: run.token_recall,
    "F1": lambda run: run.token_f1,
    "Accuracy": lambda run: figure_of(run, "classification", "accuracy"),
    **{name: partial(figure_of, part="all", name=name) for name in METRICS},
}
