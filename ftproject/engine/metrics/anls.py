"""ANLS: how near an answer's spelling is, nothing when it is too far."""

from __future__ import annotations

from dataclasses import dataclass

from ftproject.engine.fields import setting
from ftproject.engine.metrics.base import Metric, Score, TextPair
from ftproject.engine.metrics.error_rates import edit_distance
from ftproject.engine.metrics.text import normalised_text


def levenshtein_similarity(prediction: str, ground_truth: str, *, threshold: float = 0.5) -> float:
    """1 - NL where NL < threshold, else 0; NL is the edit distance over the longer text's length.

    Biten et al. 2019, Scene Text Visual Question Answering, equation 1, for one ground truth. Case does not count, as
    in that challenge; whitespace is collapsed. NL equal to the threshold is 0, as the paper says (the challenge's
    script keeps it). Empty against empty is 1.0.

    >>> levenshtein_similarity("Coca cola", "coca-cola")
    0.8888888888888888
    >>> levenshtein_similarity("pepsi", "coca-cola"), levenshtein_similarity("ab", "ac"), levenshtein_similarity("", "")
    (0.0, 0.0, 1.0)
    """
    predicted, true = normalised_text(prediction).lower(), normalised_text(ground_truth).lower()
    longest = max(len(predicted), len(true))
    distance = edit_distance(predicted, true) / longest if longest else 0.0
    return 1 - distance if distance < threshold else 0.0


@dataclass(frozen=True)
class Anls(Metric):
    """The mean over rows: average normalised Levenshtein similarity."""

    name = "anls"
    threshold: float = setting(
        0.5, exclusive_min=0.0, max=1.0, help="Normalised distance from which on nothing counts."
    )

    def score(self, pair: TextPair) -> Score:
        """See levenshtein_similarity."""
        return Score(levenshtein_similarity(pair.prediction, pair.ground_truth, threshold=self.threshold))
