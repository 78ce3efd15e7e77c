"""Labels in texts: which ones a column has, and which one an answer gives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ftproject.engine.metrics import normalised_text, strip_punctuation

POSITIVE_WORDS = frozenset({"yes", "true", "1"})
NEGATIVE_WORDS = frozenset({"no", "false", "0"})
YES_AND_NO = ("no", "yes")
# The confusion matrix has the square of this; a column of free text has as many labels as rows.
MOST_LABELS = 500
# With confidence each label of each row costs a forward pass of the prompt.
MOST_SCORED_LABELS = 50
MOST_SPELLINGS = 100
# "Yes, it is red" answers yes; "yes and no" does not answer.
_FIRST_CLAUSE = re.compile(r"\s*(?:[,.;:!?](?=\s|$)|\n)")
_NEGATION = re.compile(r"\b(?:not?|none|never|neither|nor|without|cannot)\b|n['\N{RIGHT SINGLE QUOTATION MARK}]t\b")


class TooManyLabelsError(ValueError):
    """Ground truths with more distinct texts than labels can be."""


def label_of(text: str) -> str:
    """A label as compared: casefolded, whitespace collapsed, surrounding punctuation off.

    >>> label_of(" Yes. ")
    'yes'
    """
    return strip_punctuation(normalised_text(text).casefold()).strip()


def known_labels(ground_truths: Iterable[str]) -> list[str]:
    """The labels of a run, ascending: no and yes when every ground truth says one of them in some way.

    Raises TooManyLabelsError beyond MOST_LABELS; memory is bounded by that number, not by the rows.

    >>> known_labels(["Cat", "dog. ", "CAT", ""]), known_labels(["true", "0"])
    (['cat', 'dog'], ['no', 'yes'])
    """
    found: set[str] = set()
    for truth in ground_truths:
        if label := label_of(truth):
            found.add(label)
        if len(found) > MOST_LABELS:
            raise TooManyLabelsError(f"more than {MOST_LABELS} different texts")
    if found and found <= POSITIVE_WORDS | NEGATIVE_WORDS:
        return list(YES_AND_NO)
    return sorted(found)


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text gives: as a whole, in its first clause, or as the only label among its words.

    None when it gives none, more than one, or a negated one ("not a cat"). Single letters and, of yes and no, the
    digits are read only where they stand alone: "a" is a word, and "I see 1 circle" says nothing.

    >>> parse_label("Yes, there is.", ["no", "yes"]), parse_label("TRUE", ["no", "yes"])
    ('yes', 'yes')
    >>> parse_label("I think it is a cat", ["cat", "dog"]), parse_label("The digit is 7.", ["1", "7"])
    ('cat', '7')
    >>> [parse_label(text, ["cat", "dog"]) for text in ("a cat or a dog", "it is not a cat", "bird")]
    [None, None, None]
    """
    for candidate in (text, _FIRST_CLAUSE.split(text.strip(), maxsplit=1)[0]):
        label = label_of(candidate)
        if label in labels:
            return label
        if is_yes_and_no(labels) and label in POSITIVE_WORDS | NEGATIVE_WORDS:
            return as_yes_or_no(label)
    return _label_among_words(normalised_text(text).casefold(), tuple(labels))


def _label_among_words(text: str, labels: tuple[str, ...]) -> str | None:
    pattern = _label_pattern(labels)
    if pattern is None:
        return None
    found = set(pattern.findall(text))
    if is_yes_and_no(labels):
        found = {as_yes_or_no(word) for word in found}
    if len(found) != 1 or _NEGATION.search(pattern.sub(" ", text)):
        return None
    return str(found.pop())


@lru_cache(maxsize=8)
def _label_pattern(labels: tuple[str, ...]) -> re.Pattern[str] | None:
    """Any label as words of its own, the longest first, so that "red circle" is not read as "circle"."""
    words = ("yes", "no", "true", "false") if is_yes_and_no(labels) else labels
    usable = [word for word in words if len(word) > 1 or not word.isalpha()]
    if not usable:
        return None
    either = "|".join(re.escape(word) for word in sorted(usable, key=len, reverse=True))
    return re.compile(rf"(?<![\w'-])(?<!\d[.,])(?:{either})(?![\w'%-]|[.,]\d)")


def is_yes_and_no(labels: Sequence[str]) -> bool:
    """Whether these are the two labels that have several spellings."""
    return tuple(labels) == YES_AND_NO


def as_yes_or_no(word: str) -> str:
    """The label of one of its spellings."""
    return "yes" if word in POSITIVE_WORDS else "no"


class Spellings:
    """How the ground truths write each label, counted as they come by.

    >>> spellings = Spellings(["no", "yes"])
    >>> for truth in ("Yes", "Yes", "yes", "No."):
    ...     spellings.add(truth)
    >>> spellings.most_frequent()
    {'no': 'No.', 'yes': 'Yes'}
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self._counts: dict[str, Counter[str]] = {label: Counter() for label in labels}

    def add(self, ground_truth: str, *, label_text: str | None = None) -> None:
        """Counts one ground truth, the whole text that a model learns to say; `label_text` is where its label stands.

        The spellings of a label are few: others than its first MOST_SPELLINGS are passed over.
        """
        label = parse_label(ground_truth if label_text is None else label_text, self.labels)
        if label is None:
            return
        counts, text = self._counts[label], ground_truth.strip()
        if text in counts or len(counts) < MOST_SPELLINGS:
            counts[text] += 1

    def most_frequent(self) -> dict[str, str]:
        """Each label as it is written most often, the first in order among equals; the label itself where never."""
        return {
            label: min(counts, key=lambda text: (-counts[text], text)) if counts else label
            for label, counts in self._counts.items()
        }
