"""Whether a model's confidence can be believed: calibration error and AUROC, from one pass over the rows."""

from __future__ import annotations

from array import array
from typing import Any

BINS = 10


class Calibration:
    """Sums over rows that have a confidence: the probability of the label that was answered.

    The expected calibration error is that of Guo et al. 2017, On Calibration of Modern Neural Networks, equation 5,
    over BINS equal bins: the mean distance between confidence and accuracy. AUROC is scikit-learn's; it takes 9 bytes
    a row.

    >>> calibration = Calibration()
    >>> for confidence, correct in [(0.95, True), (0.95, True), (0.65, False)]:
    ...     calibration.add(confidence, correct=correct)
    >>> round(calibration.figures()["expected_calibration_error"], 4)
    0.25
    """

    def __init__(self) -> None:
        self.count, self.correct, self.confidence = [0] * BINS, [0] * BINS, [0.0] * BINS
        self.without = 0
        self.positive_probabilities, self.positives = array("d"), array("b")

    def add(self, confidence: float | None, *, correct: bool) -> None:
        """Counts one labelled row; one without a confidence (its answer is no label) is only counted."""
        if confidence is None:
            self.without += 1
            return
        place = min(int(confidence * BINS), BINS - 1)
        self.count[place] += 1
        self.correct[place] += correct
        self.confidence[place] += confidence

    def add_binary(self, positive_probability: float, *, positive: bool) -> None:
        """Counts one row of a task with a positive label for the AUROC, whatever it answered."""
        self.positive_probabilities.append(positive_probability)
        self.positives.append(positive)

    def figures(self) -> dict[str, Any]:
        """The figures as plain JSON; null where nothing was counted."""
        rows = sum(self.count)
        gaps = (abs(self.confidence[place] - self.correct[place]) for place in range(BINS))
        return {
            "rows": rows,
            "without_confidence": self.without,
            "mean_confidence": sum(self.confidence) / rows if rows else None,
            "accuracy": sum(self.correct) / rows if rows else None,
            "expected_calibration_error": sum(gaps) / rows if rows else None,
            "bins": [self._bin(place) for place in range(BINS) if self.count[place]],
            "auroc": self._auroc(),
        }

    def _bin(self, place: int) -> dict[str, Any]:
        count = self.count[place]
        return {
            "from": place / BINS,
            "to": (place + 1) / BINS,
            "count": count,
            "confidence": self.confidence[place] / count,
            "accuracy": self.correct[place] / count,
        }

    def _auroc(self) -> float | None:
        """Null unless both classes are there."""
        if not 0 < sum(self.positives) < len(self.positives):
            return None
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(self.positives, self.positive_probabilities))
