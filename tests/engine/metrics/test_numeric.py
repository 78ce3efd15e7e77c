"""Numbers in answers: what is read, what is not guessed at, and tolerances that hold to the digit."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine.metrics import numbers_match, parse_number
from ftproject.engine.metrics.base import TextPair
from ftproject.engine.metrics.numeric import NumericMatch


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", "42"),
        (" 42.\n", "42"),
        ("The answer is 42.", "42"),
        ("007", "7"),
        ("-5", "-5"),
        ("\N{MINUS SIGN}5", "-5"),
        ("+5", "5"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("1,234,567.89", "1234567.89"),
        ("1 234 567", "1234567"),
        ("1\N{NARROW NO-BREAK SPACE}234", "1234"),
        ("1'234", "1234"),
        ("1234567", "1234567"),
        ("$1,234", "1234"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("$ .50", "0.5"),
        ("12.50 €", "12.5"),
        ("USD 12", "12"),
        ("5kg", "5"),
        ("5 kg", "5"),
        ("3rd", "3"),
        ("50%", "0.5"),
        ("50 percent", "0.5"),
        ("7 %", "0.07"),
        ("1e5", "100000"),
        ("1.5E-3 m", "0.0015"),
        ("2.5 million", "2500000"),
        ("3 thousand dollars", "3000"),
        ("٤٢", "42"),
        ("**17**", "17"),
        ("x=3", "3"),
    ],
)
def test_the_only_number_of_a_text_is_read_exactly(text: str, number: str) -> None:
    assert parse_number(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "forty-two",
        "3 to 5",
        "3-5",
        "1/2",
        "10:30",
        "2026-11-22",
        "1,5",
        "1.234.567",
        "12,34",
        "1,2345",
        "CO2 level 40",
        "1 x 10^5",
        "5k",
        "5M",
        "nan",
        "inf",
        "1" * 61,
        "1e9999",
        "$",
        "-",
        "²",
    ],
)
def test_what_could_be_meant_in_two_ways_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,5", "1.5"), ("1.234.567,89", "1234567.89"), ("1.234", "1234"), ("1.5", None), ("1,234.5", None)],
)
def test_a_decimal_comma_is_read_when_the_run_says_so(text: str, number: str | None) -> None:
    assert parse_number(text, decimal_separator=",") == (None if number is None else Decimal(number))


@given(st.decimals(min_value=-(10**12), max_value=10**12, allow_nan=False, places=4))
def test_every_number_is_read_back_as_python_writes_it(number: Decimal) -> None:
    assert parse_number(str(number)) == number
    assert parse_number(f"about {number:,} in total") == number


@given(st.text(max_size=80))
def test_no_text_breaks_the_reader(text: str) -> None:
    found = parse_number(text)
    assert found is None or found.is_finite()


@pytest.mark.parametrize(
    ("prediction", "truth", "tolerance", "relative", "match"),
    [
        ("1.01", "1.00", 0.01, 0.0, True),
        ("1.0101", "1.00", 0.01, 0.0, False),
        ("0.3", "0.1", 0.2, 0.0, True),  # in floats the difference is above 0.2
        ("95", "100", 0.0, 0.05, True),
        ("94.99", "100", 0.0, 0.05, False),
        ("-95", "-100", 0.0, 0.05, True),
        ("0.1", "0", 0.0, 0.5, False),
        ("0", "0", 0.0, 0.0, True),
        ("1e300", "1e-300", 0.0, 1.0, False),
    ],
)
def test_tolerances_hold_to_the_digit(
    prediction: str, truth: str, tolerance: float, relative: float, match: bool
) -> None:
    limits = {"tolerance": tolerance, "relative_tolerance": relative}
    assert numbers_match(Decimal(prediction), Decimal(truth), **limits) is match


@given(st.decimals(-1000, 1000, places=2), st.decimals(-1000, 1000, places=2), st.sampled_from([0.0, 0.05, 0.5]))
def test_relative_tolerance_is_chartqas_relaxed_accuracy(prediction: Decimal, truth: Decimal, allowed: float) -> None:
    """Masry et al. 2022: |prediction - target| / |target| <= allowed; a target of 0 must be hit."""
    off = abs(prediction - truth)
    expected = off / abs(truth) <= Decimal(repr(allowed)) if truth else off == 0
    assert numbers_match(prediction, truth, relative_tolerance=allowed) is expected


def test_an_answer_without_a_number_is_wrong_and_counted() -> None:
    metric, totals = NumericMatch(tolerance=0.5), NumericMatch().totals()
    for prediction, truth in [("42.5", "42"), ("many", "42"), ("3 or 4", "3"), ("7", "n/a")]:
        score = metric.score(TextPair(prediction, truth))
        totals.add(score.value, score.details)
    assert totals.value() == pytest.approx(1 / 3)
    assert totals.details() == {"undefined": 1, "unparsed": 2, "ground_truth_unparsed": 1}


def test_a_run_without_any_number_in_its_ground_truth_has_no_figure() -> None:
    totals = NumericMatch().totals()
    score = NumericMatch().score(TextPair("5", "a cat"))
    totals.add(score.value, score.details)
    assert score.value is None
    assert totals.value() is None
