"""The difference between two answers, word by word, as a person would mark it."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

# Longer answers would keep a thread busy for seconds: the comparison is quadratic at worst.
MOST_WORDS = 2000
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True)
class DiffPart:
    """A stretch that is the same in both texts, or what stands in one where the other has something else."""

    op: str
    base: str
    finetuned: str


def diff_words(base: str, finetuned: str) -> list[DiffPart] | None:
    """The parts in order; joined, their sides give the texts back. None when a text is too long to compare.

    >>> [(part.op, part.base, part.finetuned) for part in diff_words("a red circle", "a blue circle")]
    [('equal', 'a ', 'a '), ('replace', 'red', 'blue'), ('equal', ' circle', ' circle')]
    """
    left, right = _WORDS.findall(base), _WORDS.findall(finetuned)
    if max(len(left), len(right)) > MOST_WORDS:
        return None
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    return [DiffPart(op, "".join(left[i1:i2]), "".join(right[j1:j2])) for op, i1, i2, j1, j2 in matcher.get_opcodes()]
