"""What a run may do to predictions and ground truths alike before any metric compares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ftproject.engine.fields import ConfigProblem, read_section, setting
from ftproject.engine.metrics.text import normalised_text, strip_punctuation

LONGEST_PATTERN = 1000
# RE2 takes time linear in text and program, never exponential. What is left to bound is the program: at 64 KiB the
# worst pattern we found needs 0.7 s for an answer of 40,000 characters; letters of all scripts still fit four times.
PATTERN_MEMORY = 1 << 16


@dataclass(frozen=True)
class Normalization:
    """How both texts are prepared, the same for every metric; off by default, as exact match is defined."""

    casefold: bool = setting(False, help="Compare without regard to case (Unicode casefold).")
    strip_punctuation: bool = setting(
        False, help="Take the punctuation off around each word; punctuation inside a word stays."
    )
    extract: str | None = setting(
        None,
        help="RE2 pattern of the answer inside the text: its first group, or the whole first match, is compared. "
        "A text without a match is compared whole.",
    )

    def answer_in(self, text: str) -> tuple[str, bool]:
        """The part of the text that `extract` finds, and whether it found one.

        >>> Normalization(extract=r"Answer: (\\w+)").answer_in("I count. Answer: 12.")
        ('12', True)
        >>> Normalization(extract=r"Answer: (\\w+)").answer_in("12")
        ('12', False)
        """
        if self.extract is None:
            return text, True
        match = compile_pattern(self.extract).search(text)
        if match is None:
            return text, False
        return next((group for group in match.groups() if group is not None), match.group()), True

    def comparable(self, text: str) -> str:
        """The text as the metrics of plain text see it; `extract` must have been applied before.

        >>> Normalization(casefold=True, strip_punctuation=True).comparable("  It's a  Circle . ")
        "it's a circle"
        """
        words = normalised_text(text.casefold() if self.casefold else text)
        if not self.strip_punctuation:
            return words
        return " ".join(kept for word in words.split() if (kept := strip_punctuation(word)))


@lru_cache(maxsize=32)
def compile_pattern(pattern: str) -> Any:
    """The compiled pattern; raises ValueError with RE2's reason."""
    import re2

    options = re2.Options()
    options.max_mem = PATTERN_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "invalid pattern"
        raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from error


def read_normalization(data: Mapping[str, Any] | None, path: str) -> tuple[Normalization, list[ConfigProblem]]:
    """The checked options of a request; `path` prefixes the names in problems."""
    values, problems = read_section(Normalization, data, path)
    pattern = values.get("extract")
    if pattern is not None and (message := problem_of_pattern(pattern)):
        return Normalization(), [*problems, ConfigProblem(f"{path}extract", "invalid_pattern", message)]
    return Normalization(**values), problems


def problem_of_pattern(pattern: str) -> str | None:
    """Why a pattern cannot be used, or None."""
    if not pattern or len(pattern) > LONGEST_PATTERN:
        return f"must have 1 to {LONGEST_PATTERN} characters, not {len(pattern)}"
    if not storable(pattern):
        return "must not hold NUL or half a surrogate pair"
    try:
        compile_pattern(pattern)
    except ValueError as error:
        return (
            f"is no RE2 pattern: {error}. RE2 has no look-around and no back references; put the answer into a group, "
            f"as in 'Answer: (.+)'"
        )
    return None


def storable(text: str) -> bool:
    """Whether the text is valid UTF-8 without NUL: PostgreSQL stores nothing else."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
