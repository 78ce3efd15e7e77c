"""How texts are made comparable before they are scored: Unicode form, whitespace, punctuation, tokens."""

from __future__ import annotations

import unicodedata


def normalised_text(text: str) -> str:
    """Unicode NFC, outer whitespace off, inner whitespace runs as one space.

    >>> normalised_text("  a  red\\n circle ")
    'a red circle'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


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
