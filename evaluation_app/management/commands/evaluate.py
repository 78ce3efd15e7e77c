"""`manage.py evaluate`: base and adapters over datasets, side by side and compared, through the services of the API."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from rest_framework.utils.encoders import JSONEncoder
from rich.console import Console
from rich.text import Text

from datasets_app.selectors import get_dataset
from evaluation_app.batch import start_batch
from evaluation_app.batch_files import FORMATS, Outcome, write_files
from evaluation_app.batch_tables import comparison_table, results_table
from evaluation_app.comparison.report import CompareOptions, compare_runs
from evaluation_app.models import EvaluationRun
from evaluation_app.plans import EvaluationRequest
from evaluation_app.scoring_arguments import add_scoring_arguments, scoring_fields
from evaluation_app.selectors import get_run
from evaluation_app.services import stop_evaluation
from evaluation_app.splits import scope_warning
from ftproject.core.commands import AuditedCommand
from ftproject.core.errors import ProductError
from ftproject.core.waiting import JobKindView, JobsWait

BASE = "base"
FAILED = 1
WIDTH_IN_FILES = 160
EVALUATION_VIEW = JobKindView(
    bar=lambda run: {"description": run.status, "total": run.total, "completed": run.current},
    stop=lambda run: stop_evaluation(run=run),
    stop_notice="Stopping after this batch; Ctrl+C again leaves at once.",
)
# A model of the command line over one dataset.
Key = tuple[int | None, str]


class Command(AuditedCommand):
    help = "Evaluates base and adapters on datasets; the exit code is 0 only when every run completed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--dataset", action="append", type=int, metavar="ID", help="dataset (default: the current one); repeatable"
        )
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
        add_comparison_arguments(parser)
        parser.add_argument(
            "--resume", action="store_true", help="go on with what an earlier call of this command began or finished"
        )
        parser.add_argument(
            "--output", type=Path, metavar="FILE", help="write rows and answers to .csv or .json, comparisons to .html"
        )
        parser.add_argument("--raw", action="store_true", help="no escape of formula cells in a CSV")
        parser.add_argument("--json", action="store_true", help="print runs and comparisons as JSON instead of tables")

    def handle(self, *args: Any, **options: Any) -> None:
        requests = requests_of(options)
        check_options(options, requests)
        try:
            runs = self.evaluated(requests, resume=options["resume"])
            self.check_completed(runs)
            outcomes = outcomes_of(runs, options)
        except ProductError as error:
            raise CommandError(describe(error)) from error
        self.show(outcomes, as_json=options["json"])
        for outcome in outcomes:
            if warning := scope_warning(outcome.runs):
                self.stderr.write(self.style.WARNING(warning))
        if options["output"]:
            for path in write_files(options["output"], outcomes, raw=options["raw"]):
                self.stderr.write(f"Results: {path}")

    def evaluated(self, requests: dict[Key, EvaluationRequest], *, resume: bool) -> dict[Key, EvaluationRun]:
        """Every run at its end."""
        started = dict(zip(requests, start_batch(requests=list(requests.values()), resume=resume), strict=True))
        several = len({dataset for dataset, _ in started}) > 1
        waiting = {label(key, several): run for key, run in started.items() if not run.is_terminal}
        if waiting:
            JobsWait(waiting, EVALUATION_VIEW, Console(stderr=True)).until_ended()
        return {key: get_run(run_id=run.pk) for key, run in started.items()}

    def check_completed(self, runs: dict[Key, EvaluationRun]) -> None:
        failed = {key: run for key, run in runs.items() if run.status != EvaluationRun.Status.COMPLETED}
        if not failed:
            return
        self.show_results(runs)
        for (_, name), run in failed.items():
            self.stderr.write(self.style.ERROR(f"{name}: run {run.pk} failed: {run.error}"))
        self.stderr.write("The same command with --resume goes on with what is missing.")
        sys.exit(FAILED)

    def show(self, outcomes: list[Outcome], *, as_json: bool) -> None:
        if not as_json:
            for outcome in outcomes:
                self.show_outcome(outcome)
            return
        facts = [outcome.facts() for outcome in outcomes]
        document = {name: [item for one in facts for item in one[name]] for name in ("runs", "comparisons")}
        self.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, cls=JSONEncoder))

    def show_results(self, runs: dict[Key, EvaluationRun]) -> None:
        for by_model in by_dataset(runs):
            self.print(results_table(by_model))

    def show_outcome(self, outcome: Outcome) -> None:
        self.print(results_table(outcome.runs))
        if not outcome.comparisons:
            return
        self.print(comparison_table(next(iter(outcome.runs)), outcome.comparisons))
        for comparison in outcome.comparisons.values():
            self.print(Text(comparison.sentence))

    def print(self, *shown: Any) -> None:
        console = Console(width=None if sys.stdout.isatty() else WIDTH_IN_FILES)
        with console.capture() as captured:
            console.print(*shown)
        self.stdout.write(captured.get())


def add_comparison_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--compare", action="store_true", help="compare every adapter with the base (without --base: with the first)"
    )
    parser.add_argument("--by", metavar="METRIC", help="what the verdict is about (default: exact_match, or accuracy)")
    parser.add_argument("--seed", type=natural, default=0, help="of the intervals (default: 0)")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def natural(text: str) -> int:
    return positive(text) if int(text) else 0


def requests_of(options: dict[str, Any]) -> dict[Key, EvaluationRequest]:
    """One request per dataset and model, by the name that tables and columns use."""
    adapters = list(dict.fromkeys(options["adapter"]))
    if not adapters and not options["base"]:
        raise CommandError("Say what to evaluate: --base, --adapter NAME, or both.")
    if len({Path(name).name for name in adapters}) != len(adapters):
        raise CommandError("One adapter is named twice.")
    shared = {
        "sample_limit": options["limit"],
        "rows": options["rows"],
        "classification_mode": options["classification"],
        "positive_label": options["positive_label"],
        **scoring_fields(options),
    }
    requests: dict[Key, EvaluationRequest] = {}
    for dataset in dict.fromkeys(options["dataset"] or [None]):
        if options["base"]:
            split = options["split_adapter"] or next(iter(adapters), None)
            requests[dataset, BASE] = EvaluationRequest(
                dataset_id=dataset, split_adapter=split, model_name=options["model"], **shared
            )
        for name in adapters:
            requests[dataset, Path(name).name] = EvaluationRequest(dataset_id=dataset, adapter_path=name, **shared)
    return requests


def check_options(options: dict[str, Any], requests: dict[Key, EvaluationRequest]) -> None:
    """Before the work, not after it."""
    path = options["output"]
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise CommandError(f"{path} cannot be written: give a file in a folder that exists.")
    if path is not None and path.suffix not in FORMATS:
        raise CommandError(f"{path} cannot be written: its ending must be one of {', '.join(FORMATS)}.")
    if options["compare"] and len({name for _, name in requests}) < 2:
        raise CommandError("--compare needs two models: --base and an --adapter, or two adapters.")
    if path is not None and path.suffix == ".html" and not options["compare"]:
        raise CommandError(f"{path} cannot be written: an HTML page shows a comparison, so give --compare too.")


def outcomes_of(runs: dict[Key, EvaluationRun], options: dict[str, Any]) -> list[Outcome]:
    compared = CompareOptions(metric=options["by"], seed=options["seed"])
    return [outcome_of(by_model, compared if options["compare"] else None) for by_model in by_dataset(runs)]


def outcome_of(runs: dict[str, EvaluationRun], options: CompareOptions | None) -> Outcome:
    if options is None:
        return Outcome(runs, {})
    baseline, *candidates = runs
    found = compare_runs(runs[baseline].pk, [runs[name].pk for name in candidates], options)
    return Outcome(runs, dict(zip(candidates, found, strict=True)))


def by_dataset(runs: dict[Key, EvaluationRun]) -> list[dict[str, EvaluationRun]]:
    datasets = dict.fromkeys(dataset for dataset, _ in runs)
    return [{name: run for (other, name), run in runs.items() if other == dataset} for dataset in datasets]


def label(key: Key, several: bool) -> str:
    dataset, name = key
    return f"{name} ({get_dataset(dataset_id=dataset).filename})" if several else name


def describe(error: ProductError) -> str:
    return "\n".join(line for line in (error.detail, error.hint) if line)
