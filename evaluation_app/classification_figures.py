"""Sums up the labels of a run: confusion, per-class figures and calibration, for all, seen and unseen rows."""

from collections.abc import Callable, Iterator
from typing import Any

from evaluation_app.models import EvaluationRun
from evaluation_app.splits import rows_in_scope
from evaluation_app.windows import iter_ground_truths
from ftproject.engine.calibration import Calibration
from ftproject.engine.classification import (
    ConfusionCounts,
    known_labels,
    parse_label,
    positive_of,
)
from ftproject.engine.metrics import ScoringOptions

Pages = Callable[..., Iterator[tuple[Any, ...]]]


class LabelTotals:
    """Confusion counts and calibration of one part of the rows."""

    def __init__(self, labels: list[str], positive: str | None) -> None:
        self.counts = ConfusionCounts(labels, positive_label=positive)
        self.calibration = Calibration()

    def add(
        self, true: str | None, predicted: str | None, confidence: float | None, probabilities: dict[str, float] | None
    ) -> None:
        self.counts.add(true, predicted)
        if true is None:
            return
        self.calibration.add(confidence, correct=true == predicted)
        positive = self.counts.positive_label
        if probabilities and positive in probabilities:
            self.calibration.add_binary(probabilities[positive], positive=true == positive)

    def figures(self, *, confidence: bool) -> dict[str, Any]:
        return {**self.counts.figures().to_dict(), "calibration": self.calibration.figures() if confidence else None}


def classification_figures(
    run: EvaluationRun, options: ScoringOptions, pages: Pages
) -> tuple[dict[str, Any] | None, list[str]]:
    """The figures with `seen` and `unseen` beside them, null outside classification; and what to warn of."""
    if run.eval_mode != EvaluationRun.EvalMode.CLASSIFICATION:
        return None, []
    # The labels of all rows in scope, as when the samples were written: skipped rows have a label too.
    truths = iter_ground_truths(run, rows_in_scope(run))
    labels = known_labels(map(options.label_text, truths))
    positive, warnings = choose_positive(run, labels)
    totals = {part: LabelTotals(labels, positive) for part in ("all", True, False)}
    columns = ("ground_truth", "prediction", "seen_in_training", "confidence", "label_probabilities")
    known = False
    for truth, prediction, seen, confidence, probabilities in pages(run, *columns, skipped=False):
        true, predicted = (parse_label(options.label_text(text), labels) for text in (truth, prediction))
        known = known or seen is not None
        for part in ("all", seen):
            if part is not None:
                totals[part].add(true, predicted, confidence, probabilities)
    figures = {part: total.figures(confidence=options.confidence) for part, total in totals.items()}
    split = {"seen": figures[True] if known else None, "unseen": figures[False] if known else None}
    return {**figures["all"], **split}, warnings


def choose_positive(run: EvaluationRun, labels: list[str]) -> tuple[str | None, list[str]]:
    try:
        return positive_of(labels, run.positive_label), []
    except ValueError as exc:
        # The label is in the dataset (checked at the start) but in no evaluated row: the other figures still hold.
        return positive_of(labels, None), [str(exc)]
