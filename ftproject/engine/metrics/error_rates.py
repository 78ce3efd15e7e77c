"""Character and word error rate: edits over the length of the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftproject.engine.metrics.base import Metric, Score, TextPair
from ftproject.engine.metrics.text import normalised_text


def edit_distance(prediction: Sequence[str], ground_truth: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions between two sequences (Levenshtein 1966).

    >>> edit_distance("sitting", "kitten")
    3
    """
    from rapidfuzz.distance import Levenshtein

    return int(Levenshtein.distance(prediction, ground_truth))


def character_error_rate(prediction: str, ground_truth: str) -> float | None:
    """Edits between the characters over the ground truth's number of characters; 0 is perfect, above 1 is possible.

    Characters are code points after `normalised_text`. Empty against empty is 0.0; anything against an empty ground
    truth has no rate: None.

    >>> character_error_rate("kitten", "sitting")
    0.42857142857142855
    >>> character_error_rate("", ""), character_error_rate("a", "")
    (0.0, None)
    """
    return _rate(list(normalised_text(prediction)), list(normalised_text(ground_truth))).value


def word_error_rate(prediction: str, ground_truth: str) -> float | None:
    """Edits between the whitespace-separated words over the ground truth's number of words; else as the character rate.

    >>> word_error_rate("the cat sat on mat", "the cat sat on the mat")
    0.16666666666666666
    >>> word_error_rate("one two three", "one")
    2.0
    """
    return _rate(normalised_text(prediction).split(), normalised_text(ground_truth).split()).value


def _rate(prediction: Sequence[str], ground_truth: Sequence[str]) -> Score:
    edits, length = edit_distance(prediction, ground_truth), len(ground_truth)
    details = {"edits": edits, "reference_length": length}
    if length == 0:
        return Score(None if edits else 0.0, details)
    return Score(edits / length, details)


@dataclass(frozen=True)
class ErrorRate(Metric):
    """The rate of a run is micro-averaged as the field does: all edits over all ground-truth characters or words.

    So a prediction where the ground truth is empty counts its insertions, although the row has no rate of its own.
    """

    higher_is_better = False

    def parts(self, value: float | None, details: Mapping[str, Any]) -> tuple[float, float]:
        """Edits and reference length."""
        return float(details["edits"]), float(details["reference_length"])


@dataclass(frozen=True)
class CharacterErrorRate(ErrorRate):
    """Character error rate."""

    name = "cer"

    def score(self, pair: TextPair) -> Score:
        """See character_error_rate."""
        return _rate(list(normalised_text(pair.prediction)), list(normalised_text(pair.ground_truth)))


@dataclass(frozen=True)
class WordErrorRate(ErrorRate):
    """Word error rate."""

    name = "wer"

    def score(self, pair: TextPair) -> Score:
        """See word_error_rate."""
        return _rate(normalised_text(pair.prediction).split(), normalised_text(pair.ground_truth).split())
