"""The tables that a batch of evaluations prints: figures of each model, and what the comparisons say."""

from collections.abc import Callable, Mapping
from functools import partial

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from evaluation_app.comparison.report import Comparison
from evaluation_app.models import EvaluationRun
from ftproject.engine.metrics import METRICS

VERDICTS = {"better": "better", "worse": "worse", "cannot_tell": "cannot tell"}


def results_table(runs: Mapping[str, EvaluationRun]) -> Table:
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


def comparison_table(baseline: str, comparisons: Mapping[str, Comparison]) -> Table:
    """One line per candidate; several candidates have p values adjusted by Holm's method."""
    adjusted = len(comparisons) > 1
    first = next(iter(comparisons.values())).evidence
    title = f"Against {baseline}, by {first.metric}{'; p adjusted for all of them (Holm)' if adjusted else ''}"
    table = Table(box=SIMPLE_HEAD, title=Text(title))
    table.add_column("Model", no_wrap=True)
    for column in ("Judged rows", "Fixed", "Broken", "Difference", "Interval", "p"):
        table.add_column(column, justify="right")
    table.add_column("Verdict", no_wrap=True)
    for name, comparison in comparisons.items():
        table.add_row(Text(name), *comparison_cells(comparison))
    return table


def comparison_cells(comparison: Comparison) -> list[str]:
    evidence, interval = comparison.evidence, comparison.interval
    counts = comparison.paired.judged.counts()
    p = evidence.p_value if evidence.p_value_adjusted is None else evidence.p_value_adjusted
    shown = "-" if interval is None else f"{signed(interval.low)} to {signed(interval.high)}"
    rows = f"{evidence.num_rows} {evidence.rows}"
    changed = [str(counts["fixed"]), str(counts["broken"])]
    return [rows, *changed, signed(evidence.difference), shown, f"{p:.2g}", VERDICTS[evidence.verdict]]


def signed(value: float) -> str:
    return f"{100 * value:+.1f}"


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
