"""chrF: F-score over character n-grams, computed by sacreBLEU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ftproject.engine.fields import setting
from ftproject.engine.metrics.base import Metric, Score, TextPair
from ftproject.engine.metrics.text import normalised_text


def character_f_score(
    prediction: str, ground_truth: str, *, char_order: int = 6, word_order: int = 0, beta: int = 2
) -> float:
    """Sentence-level chrF between 0 and 1: sacreBLEU's figure divided by 100 (Popović 2015, 2017).

    Whitespace is left out; n-gram orders longer than both texts do not count. Empty against empty is 1.0 (sacreBLEU
    says 0); empty against anything is 0.0.

    >>> round(character_f_score("the cat sat", "the cat sits"), 4)
    0.6103
    >>> character_f_score("7", "7"), character_f_score("", ""), character_f_score("", "7")
    (1.0, 1.0, 0.0)
    """
    predicted, true = normalised_text(prediction), normalised_text(ground_truth)
    if predicted == true:
        return 1.0
    if not predicted or not true:
        return 0.0
    return float(_scorer(char_order, word_order, beta).sentence_score(predicted, [true]).score) / 100


@lru_cache(maxsize=8)
def _scorer(char_order: int, word_order: int, beta: int) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(char_order=char_order, word_order=word_order, beta=beta)


@dataclass(frozen=True)
class ChrF(Metric):
    """The mean over rows of the sentence-level score; sacreBLEU's corpus score pools n-grams of all rows instead."""

    name = "chrf"
    char_order: int = setting(6, min=1, max=10, help="Longest character n-gram.")
    word_order: int = setting(0, min=0, max=4, help="Longest word n-gram; 2 is chrF++.")
    beta: int = setting(2, min=1, max=10, help="How many times recall counts as much as precision.")

    def score(self, pair: TextPair) -> Score:
        """See character_f_score."""
        value = character_f_score(
            pair.prediction,
            pair.ground_truth,
            char_order=self.char_order,
            word_order=self.word_order,
            beta=self.beta,
        )
        return Score(value)
