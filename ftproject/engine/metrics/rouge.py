"""ROUGE-L: overlap by the longest common subsequence of words."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from ftproject.engine.metrics.base import Metric, Score, TextPair


def rouge_tokens(text: str) -> list[str]:
    """Runs of letters, digits and their combining marks, casefolded; for ASCII text those of Google's rouge-score.

    rouge-score drops every character beyond ASCII, which leaves nothing of most of the world's texts.

    >>> rouge_tokens("Don't stop: 3.14 हिन्दी!")
    ['don', 't', 'stop', '3', '14', 'हिन्दी']
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    return "".join(character if _in_word(character) else " " for character in folded).split()


def _in_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def rouge_l(prediction: str, ground_truth: str) -> float:
    """The F1 of the longest common subsequence of tokens (Lin 2004, with beta 1 as in rouge-score, no stemming).

    Empty against empty is 1.0 (rouge-score says 0), as for the token scores; empty against anything is 0.0.

    >>> rouge_l("the cat was found under the bed", "the cat was under the bed")
    0.9230769230769231
    >>> rouge_l("", ""), rouge_l("", "a")
    (1.0, 0.0)
    """
    from rapidfuzz.distance import LCSseq

    predicted, true = rouge_tokens(prediction), rouge_tokens(ground_truth)
    if not predicted and not true:
        return 1.0
    return 2 * int(LCSseq.similarity(predicted, true)) / (len(predicted) + len(true))


@dataclass(frozen=True)
class RougeL(Metric):
    """The mean over rows."""

    name = "rouge_l"

    def score(self, pair: TextPair) -> Score:
        """See rouge_l."""
        return Score(rouge_l(pair.prediction, pair.ground_truth))
