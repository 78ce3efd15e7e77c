"""Numeric match: whether the number in an answer is the right one, within a tolerance."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any

from ftproject.engine.fields import setting
from ftproject.engine.metrics.base import Metric, Score, TextPair, Totals

_SIGN = "[-+\N{MINUS SIGN}\N{EN DASH}]"
_GROUPS = " \N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}'\N{RIGHT SINGLE QUOTATION MARK}"
_CURRENCY = "\N{CURRENCY SIGN}"  # stands for every currency symbol
_DIGIT = re.compile(r"\d")
_UNIT = re.compile(r"(\s*)([^\W\d_]+)")
_PERCENT = re.compile(r"\s?(?:[%\N{ARABIC PERCENT SIGN}]|per ?cent\b)", re.IGNORECASE)
_SCALES = {"thousand": 3, "million": 6, "millions": 6, "billion": 9, "billions": 9, "trillion": 12, "trillions": 12}
# 5k may be five thousand or 5 kelvin, 5M five million or molar: nobody can tell, so it is no number.
_UNCLEAR_SUFFIXES = frozenset({"k", "K", "M", "mn", "B", "bn", "T", "G"})
LONGEST_NUMBER = 60
# More digits than a difference of two numbers that short can have.
_PRECISION = 150


@lru_cache(maxsize=2)
def _number_pattern(decimal_separator: str) -> re.Pattern[str]:
    point = re.escape(decimal_separator)
    groups = re.escape(_GROUPS + {".": ",", ",": "."}[decimal_separator])
    return re.compile(
        rf"(?P<sign>(?<!\w){_SIGN})?(?:{_CURRENCY}\s?(?P<inner_sign>{_SIGN})?)?"
        rf"(?P<whole>\d{{1,3}}(?:(?P<group>[{groups}])\d{{3}}(?!\d))(?:(?P=group)\d{{3}}(?!\d))*|\d+|(?={point}\d))"
        rf"(?:{point}(?P<fraction>\d+))?(?:[eE](?P<exponent>[-+]?\d{{1,3}})(?!\w))?"
    )


def parse_number(text: str, *, decimal_separator: str = ".") -> Decimal | None:
    """The only number in a text, exactly; None when there is none, or more than one, or its size cannot be told.

    Understood: thousands separated by the other of `,` and `.`, by a space or an apostrophe, in groups of three;
    currency symbols and units (left out, not compared); percent (a hundredth, as in ChartQA); 1e5; thousand, million,
    billion, trillion as words.

    >>> parse_number("about $1,234.50"), parse_number("-12 %"), parse_number("2.5 million")
    (Decimal('1234.50'), Decimal('-0.12'), Decimal('2.5E+6'))
    >>> parse_number("1.234,5", decimal_separator=",")
    Decimal('1234.5')
    >>> [parse_number(text) for text in ("1,5", "3 to 5", "1/2", "5k", "none", "")]
    [None, None, None, None, None, None]
    """
    marked = "".join(_CURRENCY if unicodedata.category(letter) == "Sc" else letter for letter in text)
    found = _number_pattern(decimal_separator).search(marked)
    if found is None or len(found.group()) > LONGEST_NUMBER:
        return None
    rest = marked[found.end() :]
    if _DIGIT.search(marked[: found.start()]) or _DIGIT.search(rest):
        return None
    scale = _scale_of(rest)
    return None if scale is None else _value_of(found).scaleb(scale)


def _value_of(found: re.Match[str]) -> Decimal:
    negative = (found["sign"] or "+") != "+"
    negative ^= (found["inner_sign"] or "+") != "+"
    whole = "".join(character for character in found["whole"] if character.isdecimal())
    value = Decimal(f"{whole or 0}.{found['fraction'] or ''}e{found['exponent'] or 0}")
    return -value if negative else value


def _scale_of(rest: str) -> int | None:
    """The power of ten that what follows the number puts on it; None when it could be meant in two ways."""
    if _PERCENT.match(rest):
        return -2
    unit = _UNIT.match(rest)
    if unit is None:
        return 0
    if not unit[1] and unit[2] in _UNCLEAR_SUFFIXES:
        return None
    return _SCALES.get(unit[2].casefold(), 0)


def numbers_match(
    prediction: Decimal, ground_truth: Decimal, *, tolerance: float = 0.0, relative_tolerance: float = 0.0
) -> bool:
    """Whether |prediction - ground truth| is at most the larger of the tolerance and its part of |ground truth|.

    As `math.isclose`, but exact in decimals, and relative to the ground truth as in ChartQA's relaxed accuracy
    (Masry et al. 2022: 5 %, which is `relative_tolerance=0.05`).

    >>> numbers_match(Decimal("1.01"), Decimal("1.00"), tolerance=0.01)
    True
    >>> numbers_match(Decimal("96"), Decimal("100"), relative_tolerance=0.05)
    True
    """
    with localcontext() as context:
        context.prec = _PRECISION
        allowed = max(Decimal(repr(tolerance)), Decimal(repr(relative_tolerance)) * abs(ground_truth))
        return abs(prediction - ground_truth) <= allowed


@dataclass(frozen=True)
class NumericMatch(Metric):
    """The share of rows with the right number, over the rows whose ground truth is one; no number is wrong."""

    name = "numeric"
    reads_structure = True
    tolerance: float = setting(0.0, min=0.0, help="Largest absolute difference that is still right.")
    relative_tolerance: float = setting(
        0.0, min=0.0, max=1.0, help="Largest difference as a part of the ground truth; 0.05 is ChartQA's."
    )
    decimal_separator: str = setting(".", choices=(".", ","), help="What stands before the fraction.")

    def score(self, pair: TextPair) -> Score:
        """1.0 or 0.0; None when the ground truth is no number."""
        predicted = parse_number(pair.prediction, decimal_separator=self.decimal_separator)
        true = parse_number(pair.ground_truth, decimal_separator=self.decimal_separator)
        if true is None:
            return Score(None, {"ground_truth_unparsed": True})
        if predicted is None:
            return Score(0.0, {"unparsed": True})
        limits = {"tolerance": self.tolerance, "relative_tolerance": self.relative_tolerance}
        return Score(float(numbers_match(predicted, true, **limits)))

    def totals(self) -> Totals:
        """The mean, and how many texts were no number."""
        return _NumericTotals(self)


class _NumericTotals(Totals):
    def __init__(self, metric: Metric) -> None:
        super().__init__(metric)
        self.unparsed = 0

    def add(self, value: float | None, details: Mapping[str, Any]) -> None:
        super().add(value, details)
        self.unparsed += bool(details.get("unparsed"))

    def details(self) -> dict[str, Any]:
        return {**super().details(), "unparsed": self.unparsed, "ground_truth_unparsed": self.undefined}
