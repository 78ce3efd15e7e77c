"""Classification figures from free-text answers: scikit-learn's own over counts, so memory does not grow with rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ftproject.engine.labels import TooManyLabelsError, known_labels, label_of, parse_label

__all__ = [
    "Averages",
    "ClassScores",
    "Classification",
    "ConfusionCounts",
    "TooManyLabelsError",
    "classify",
    "known_labels",
    "label_of",
    "parse_label",
    "positive_of",
]

# No ground truth can be this: labels are stripped of punctuation.
_UNPARSED = "?"


@dataclass(frozen=True)
class ClassScores:
    """One label's figures; null where nothing was predicted or nothing was there."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Averages:
    """Means over labels, those without a figure left out."""

    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Classification:
    """The figures of a run; rows of the matrix are true labels, columns predicted ones, in `labels` order.

    With a positive label, precision, recall and F1 are that label's, else the macro averages.
    Unparsed predictions are in no column: a row of the matrix plus `unparsed_by_label` sums to the support.
    """

    labels: list[str]
    positive_label: str | None
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    macro_avg: Averages
    weighted_avg: Averages
    confusion_matrix: list[list[int]]
    per_class: list[ClassScores]
    unparsed: int
    unparsed_by_label: list[int]
    unlabelled: int

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return asdict(self)


class ConfusionCounts:
    """Counts rows by true and predicted label; the labels of the run are known before."""

    def __init__(self, labels: Sequence[str], *, positive_label: str | None = None) -> None:
        """Raises ValueError for a `positive_label` that is none of the labels."""
        self.labels = list(labels)
        self.positive_label = positive_of(self.labels, positive_label)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.unlabelled = 0

    def add(self, true: str | None, predicted: str | None) -> None:
        """Counts one evaluated row; `true` null is a row without a label, `predicted` null an answer that is none."""
        if true is None:
            self.unlabelled += 1
        else:
            self.counts[true, predicted if predicted in self.labels else _UNPARSED] += 1

    def figures(self) -> Classification:
        """What was counted so far; figures without anything to count are null."""
        unparsed = [self.counts[label, _UNPARSED] for label in self.labels]
        return Classification(
            labels=self.labels,
            positive_label=self.positive_label,
            confusion_matrix=[[self.counts[true, predicted] for predicted in self.labels] for true in self.labels],
            unparsed=sum(unparsed),
            unparsed_by_label=unparsed,
            unlabelled=self.unlabelled,
            **self._scores(),
        )

    def _scores(self) -> dict[str, Any]:
        if not self.counts:
            nothing = Averages(None, None, None)
            return {**self._headline([], nothing, None), "macro_avg": nothing, "weighted_avg": nothing}
        from sklearn.metrics import precision_recall_fscore_support

        # One row a cell of the matrix, weighted by its count, is what scikit-learn would sum up from the rows.
        cells = [cell for cell in self.counts if self.counts[cell]]
        true, predicted = [cell[0] for cell in cells], [cell[1] for cell in cells]
        weights = [self.counts[cell] for cell in cells]
        options = {"labels": self.labels, "sample_weight": weights, "zero_division": math.nan}
        columns = precision_recall_fscore_support(true, predicted, **options)
        macro, weighted = (
            Averages(*map(_finite, precision_recall_fscore_support(true, predicted, average=kind, **options)[:3]))
            for kind in ("macro", "weighted")
        )
        per_class = [
            ClassScores(label, _finite(precision), _finite(recall), _finite(f1), round(support))
            for label, precision, recall, f1, support in zip(self.labels, *columns, strict=True)
        ]
        right = sum(self.counts[label, label] for label in self.labels)
        headline = self._headline(per_class, macro, right / sum(weights))
        return {**headline, "macro_avg": macro, "weighted_avg": weighted}

    def _headline(self, per_class: list[ClassScores], macro: Averages, accuracy: float | None) -> dict[str, Any]:
        chosen = next((scores for scores in per_class if scores.label == self.positive_label), macro)
        return {
            "accuracy": accuracy,
            "precision": chosen.precision,
            "recall": chosen.recall,
            "f1": chosen.f1,
            "per_class": per_class,
        }


def positive_of(labels: Sequence[str], wanted: str | None) -> str | None:
    """The positive label: the wanted one, else of two labels the last in order (`yes`), else none.

    Raises ValueError for a wanted one that is none of the labels.
    """
    if wanted is None:
        return labels[-1] if len(labels) == 2 else None
    found = parse_label(wanted, labels)
    if found is None:
        raise ValueError(f"positive_label {wanted!r} is none of the labels {', '.join(labels) or '(none)'}")
    return found


def classify(
    predictions: Sequence[str], ground_truths: Sequence[str], *, positive_label: str | None = None
) -> Classification:
    """The figures of evaluated rows; a prediction that is no label counts as wrong and as `unparsed`.

    Rows with a blank ground truth are left out and counted as `unlabelled`. Of two labels the last in order
    (`yes`) is positive unless chosen. Raises ValueError for a `positive_label` that is no label of the run.

    >>> figures = classify(["yes", "maybe", "no"], ["yes", "yes", "no"])
    >>> figures.confusion_matrix, figures.unparsed, figures.precision, figures.recall
    ([[1, 0], [0, 1]], 1, 1.0, 0.5)
    """
    labels = known_labels(ground_truths)
    counts = ConfusionCounts(labels, positive_label=positive_label)
    for truth, prediction in zip(ground_truths, predictions, strict=True):
        counts.add(parse_label(truth, labels), parse_label(prediction, labels))
    return counts.figures()


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
