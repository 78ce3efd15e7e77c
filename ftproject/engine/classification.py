"""Classification figures from free-text answers: labels read from text, scikit-learn's counts over them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ftproject.engine.metrics import normalised_text, strip_punctuation

POSITIVE_WORDS = frozenset({"yes", "true", "1"})
NEGATIVE_WORDS = frozenset({"no", "false", "0"})
# No ground truth can be this: labels are stripped of punctuation.
_UNPARSED = "?"
# "Yes, it is red" answers yes; "yes and no" does not answer.
_FIRST_CLAUSE = re.compile(r"\s*(?:[,.;:!?](?=\s|$)|\n)")


@dataclass(frozen=True)
class ClassScores:
    """One label's figures; null where nothing was predicted or nothing was there."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Classification:
    """The figures of a run; rows of the matrix are true labels, columns predicted ones, in `labels` order.

    With a positive label, precision, recall and F1 are that label's, else the mean over labels where defined.
    Unparsed predictions are in no column: a row of the matrix plus `unparsed_by_label` sums to the support.
    """

    labels: list[str]
    positive_label: str | None
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    confusion_matrix: list[list[int]]
    per_class: list[ClassScores]
    unparsed: int
    unparsed_by_label: list[int]
    unlabelled: int

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return asdict(self)


def label_of(text: str) -> str:
    """A label as compared: casefolded, whitespace collapsed, surrounding punctuation off.

    >>> label_of(" Yes. ")
    'yes'
    """
    return strip_punctuation(normalised_text(text).casefold()).strip()


def known_labels(ground_truths: Sequence[str]) -> list[str]:
    """The labels of a run, ascending: no and yes when every ground truth says one of them in some way."""
    found = {label_of(truth) for truth in ground_truths} - {""}
    if found and found <= POSITIVE_WORDS | NEGATIVE_WORDS:
        return ["no", "yes"]
    return sorted(found)


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text gives, as a whole or in its first clause; null when it gives none.

    >>> parse_label("Yes, there is.", ["no", "yes"]), parse_label("TRUE", ["no", "yes"])
    ('yes', 'yes')
    >>> parse_label("yes and no", ["no", "yes"]) is None
    True
    """
    for candidate in (text, _FIRST_CLAUSE.split(text.strip(), maxsplit=1)[0]):
        label = label_of(candidate)
        if label in labels:
            return label
        if list(labels) == ["no", "yes"] and label in POSITIVE_WORDS | NEGATIVE_WORDS:
            return "yes" if label in POSITIVE_WORDS else "no"
    return None


def classify(
    predictions: Sequence[str], ground_truths: Sequence[str], *, positive_label: str | None = None
) -> Classification:
    """The figures of evaluated rows; a prediction that is no label counts as wrong and as `unparsed`.

    Rows with a blank ground truth are left out and counted as `unlabelled`. Of two labels the last in order
    (`yes`) is positive unless chosen. Raises ValueError for a `positive_label` that is no label of the run.
    """
    labels = known_labels(ground_truths)
    pairs = [
        (parse_label(truth, labels), parse_label(prediction, labels))
        for prediction, truth in zip(predictions, ground_truths, strict=True)
        if label_of(truth)
    ]
    positive = _positive(labels, positive_label)
    true = [truth or _UNPARSED for truth, _ in pairs]
    predicted = [prediction or _UNPARSED for _, prediction in pairs]
    unparsed = [sum(truth == label and prediction is None for truth, prediction in pairs) for label in labels]
    figures = _figures(true, predicted, labels, positive)
    return Classification(
        labels=labels,
        positive_label=positive,
        unparsed=sum(unparsed),
        unparsed_by_label=unparsed,
        unlabelled=len(ground_truths) - len(pairs),
        **figures,
    )


def _positive(labels: Sequence[str], wanted: str | None) -> str | None:
    if wanted is not None:
        found = parse_label(wanted, labels)
        if found is None:
            raise ValueError(f"positive_label {wanted!r} is none of the labels {', '.join(labels) or '(none)'}")
        return found
    return labels[-1] if len(labels) == 2 else None


def _figures(true: list[str], predicted: list[str], labels: list[str], positive: str | None) -> dict[str, Any]:
    if not true:
        empty = dict.fromkeys(("accuracy", "precision", "recall", "f1"))
        return {**empty, "confusion_matrix": [[0] * len(labels) for _ in labels], "per_class": []}
    from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

    columns = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=math.nan)
    per_class = [
        ClassScores(label, _finite(precision), _finite(recall), _finite(f1), int(support))
        for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
    ]
    chosen = [scores for scores in per_class if positive in (None, scores.label)]
    return {
        "accuracy": float(accuracy_score(true, predicted)),
        "precision": _mean([scores.precision for scores in chosen]),
        "recall": _mean([scores.recall for scores in chosen]),
        "f1": _mean([scores.f1 for scores in chosen]),
        "confusion_matrix": confusion_matrix(true, predicted, labels=labels).tolist(),
        "per_class": per_class,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
