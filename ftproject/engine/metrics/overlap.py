"""The scores that every run has: exact match, and precision, recall and F1 over tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ftproject.engine.metrics.text import normalised_text, score_tokens


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


def exact_match(prediction: str, ground_truth: str) -> bool:
    """Whether both texts are equal after `normalised_text`; case and punctuation count.

    >>> exact_match("a red  circle ", "a red circle")
    True
    >>> exact_match("A red circle", "a red circle")
    False
    """
    return normalised_text(prediction) == normalised_text(ground_truth)


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
