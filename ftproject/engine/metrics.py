"""Scores of predictions against ground truths: exact match and token overlap, per sample and over a run.

Figures over labels are in ftproject.engine.classification.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenScores:
    """Overlap of a prediction's tokens with the ground truth's, each between 0 and 1."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class SampleScore:
    """The scores of one sample; a skipped one has none."""

    exact_match: bool | None
    token_precision: float | None
    token_recall: float | None
    token_f1: float | None

    @property
    def skipped(self) -> bool:
        """True for a row that was not evaluated."""
        return self.exact_match is None


SKIPPED = SampleScore(None, None, None, None)


def normalised_text(text: str) -> str:
    """Unicode NFC, outer whitespace off, inner whitespace runs as one space.

    >>> normalised_text("  a  red\\n circle ")
    'a red circle'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_match(prediction: str, ground_truth: str) -> bool:
    """Whether both texts are equal after `normalised_text`; case and punctuation count.

    >>> exact_match("a red  circle ", "a red circle")
    True
    >>> exact_match("A red circle", "a red circle")
    False
    """
    return normalised_text(prediction) == normalised_text(ground_truth)


def score_tokens(text: str) -> list[str]:
    """The tokens that token_scores compares: casefolded words without surrounding punctuation.

    >>> score_tokens("A red circle, left of a 'Blue' square.")
    ['a', 'red', 'circle', 'left', 'of', 'a', 'blue', 'square']
    """
    words = (strip_punctuation(word) for word in unicodedata.normalize("NFC", text).casefold().split())
    return [word for word in words if word]


def strip_punctuation(word: str) -> str:
    """The word without the punctuation around it; punctuation inside stays.

    >>> strip_punctuation("«don't!»")
    "don't"
    """
    start, end = 0, len(word)
    while start < end and unicodedata.category(word[start]).startswith("P"):
        start += 1
    while end > start and unicodedata.category(word[end - 1]).startswith("P"):
        end -= 1
    return word[start:end]


def token_scores(prediction: str, ground_truth: str) -> TokenScores:
    """Precision, recall and F1 of the multiset overlap of tokens, as in SQuAD's F1 but keeping articles.

    Empty against empty is 1.0 in all three; empty against anything is 0.0.

    >>> token_scores("a red circle", "the red circle")
    TokenScores(precision=0.6666666666666666, recall=0.6666666666666666, f1=0.6666666666666666)
    >>> token_scores("yes yes", "yes")
    TokenScores(precision=0.5, recall=1.0, f1=0.6666666666666666)
    >>> token_scores("", "")
    TokenScores(precision=1.0, recall=1.0, f1=1.0)
    """
    predicted, true = Counter(score_tokens(prediction)), Counter(score_tokens(ground_truth))
    if not predicted and not true:
        return TokenScores(1.0, 1.0, 1.0)
    common = (predicted & true).total()
    if common == 0:
        return TokenScores(0.0, 0.0, 0.0)
    # 2c / (p + t) is the harmonic mean of c/p and c/t, without a second rounding.
    f1 = 2 * common / (predicted.total() + true.total())
    return TokenScores(common / predicted.total(), common / true.total(), f1)


def score_sample(prediction: str, ground_truth: str) -> SampleScore:
    """All scores of one evaluated sample."""
    tokens = token_scores(prediction, ground_truth)
    return SampleScore(exact_match(prediction, ground_truth), tokens.precision, tokens.recall, tokens.f1)


def aggregate(scores: Iterable[SampleScore]) -> dict[str, float | int | None]:
    """Counts and means of a run; `num_samples` counts skipped rows too, every mean leaves them out.

    >>> run = [score_sample("7", "7")] * 70 + [score_sample("1", "7")] * 25 + [SKIPPED] * 5
    >>> result = aggregate(run)
    >>> result["num_samples"], result["num_skipped"], round(result["exact_match_accuracy"], 4)
    (100, 5, 0.7368)
    >>> aggregate([SKIPPED])["token_f1"] is None
    True
    """
    rows = list(scores)
    evaluated = [row for row in rows if not row.skipped]
    return {
        "num_samples": len(rows),
        "num_skipped": len(rows) - len(evaluated),
        "exact_match_accuracy": _mean(row.exact_match for row in evaluated),
        "token_precision": _mean(row.token_precision for row in evaluated),
        "token_recall": _mean(row.token_recall for row in evaluated),
        "token_f1": _mean(row.token_f1 for row in evaluated),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [float(value) for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
