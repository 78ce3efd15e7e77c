"""Slow, plain implementations from the definitions, and the texts that hypothesis tries them with."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

# Few characters, so that texts overlap; an accent, a letter beyond the first plane, punctuation and kinds of space.
ALPHABET = "abcAB é\N{GRINNING FACE}.,-'\n\t\N{NO-BREAK SPACE}"
texts = st.text(alphabet=ALPHABET, max_size=25)
ascii_texts = st.text(alphabet="abcdAB12 .,-'\n", max_size=30)


def levenshtein(one: Sequence[str], other: Sequence[str]) -> int:
    """The table of Wagner and Fischer 1974, row by row."""
    previous = list(range(len(other) + 1))
    for number, left in enumerate(one, start=1):
        current = [number]
        for place, right in enumerate(other, start=1):
            current.append(min(previous[place] + 1, current[-1] + 1, previous[place - 1] + (left != right)))
        previous = current
    return previous[-1]


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    previous = [0] * (len(other) + 1)
    for left in one:
        current = [0]
        for place, right in enumerate(other, start=1):
            current.append(previous[place - 1] + 1 if left == right else max(previous[place], current[-1]))
        previous = current
    return previous[-1]
