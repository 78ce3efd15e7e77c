"""The figures of a run, summed up row by row in memory that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ftproject.engine.metrics.options import ScoringOptions
from ftproject.engine.metrics.overlap import SampleScore

_MEANS = {
    "exact_match_accuracy": "exact_match",
    "token_precision": "token_precision",
    "token_recall": "token_recall",
    "token_f1": "token_f1",
}


class RunTotals:
    """Takes each row of a run, or of a part of it, once: `num_samples` counts skipped rows, every mean leaves them out.

    >>> totals = RunTotals(ScoringOptions())
    >>> totals.add(SampleScore(True, 1.0, 1.0, 1.0))
    >>> totals.add(SampleScore(None, None, None, None))
    >>> totals.figures()["num_samples"], totals.figures()["num_skipped"], totals.figures()["exact_match_accuracy"]
    (2, 1, 1.0)
    """

    def __init__(self, options: ScoringOptions) -> None:
        self.options = options
        self.rows = self.evaluated = 0
        self.sums = dict.fromkeys(_MEANS.values(), 0.0)
        self.metrics = {metric.name: metric.totals() for metric in options.metrics}
        self.unmatched = {"prediction": 0, "ground_truth": 0}

    def add(
        self,
        overlap: SampleScore,
        values: Mapping[str, float | None] | None = None,
        details: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Counts one row; of a skipped one nothing but its presence."""
        self.rows += 1
        if overlap.skipped:
            return
        values, details = values or {}, details or {}
        self.evaluated += 1
        for name in self.sums:
            self.sums[name] += float(getattr(overlap, name))
        for name, totals in self.metrics.items():
            totals.add(values.get(name), details.get(name, {}))
        for side, found in details.get("extract", {}).items():
            self.unmatched[side] += not found

    def figures(self) -> dict[str, Any]:
        """Counts, means and, under `details`, what each metric reports beside its mean; undefined figures are None."""
        named = self.metrics.items()
        details: dict[str, Any] = {name: totals.details() for name, totals in named}
        if self.options.normalization.extract is not None:
            details["extract"] = {f"{side}s_without_match": count for side, count in self.unmatched.items()}
        return {
            "num_samples": self.rows,
            "num_skipped": self.rows - self.evaluated,
            **{name: self.sums[field] / self.evaluated if self.evaluated else None for name, field in _MEANS.items()},
            **{name: totals.value() for name, totals in named},
            "details": details,
        }


def aggregate(scores: Iterable[SampleScore]) -> dict[str, Any]:
    """Counts and means of rows that have only the scores that every run has.

    >>> from ftproject.engine.metrics.overlap import SKIPPED, score_sample
    >>> run = [score_sample("7", "7")] * 70 + [score_sample("1", "7")] * 25 + [SKIPPED] * 5
    >>> result = aggregate(run)
    >>> result["num_samples"], result["num_skipped"], round(result["exact_match_accuracy"], 4)
    (100, 5, 0.7368)
    >>> aggregate([SKIPPED])["token_f1"] is None
    True
    """
    totals = RunTotals(ScoringOptions())
    for score in scores:
        totals.add(score)
    return totals.figures()
