"""Power and numbers of rows: against sums over all outcomes, and at their edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ftproject.engine.statistics.paired_tests import TEST_LEVEL, mcnemar_p_value
from ftproject.engine.statistics.power import (
    MOST_EXACT_ROWS,
    _critical_counts,
    detectable_difference,
    mcnemar_power,
    mcnemar_rows,
    rows_for_power,
)


def power_by_counting(rows: int, fixed: float, broken: float) -> float:
    outcomes = ((x, y) for x in range(rows + 1) for y in range(rows + 1 - x))
    return sum(
        float(stats.multinomial.pmf([x, y, rows - x - y], rows, [fixed, broken, max(0.0, 1 - fixed - broken)]))
        for x, y in outcomes
        if mcnemar_p_value(x, y) <= TEST_LEVEL
    )


@pytest.mark.parametrize(("rows", "fixed", "broken"), [(30, 0.3, 0.05), (25, 0.3, 0.0), (12, 0.5, 0.5), (8, 0.9, 0.1)])
def test_the_power_is_the_sum_over_all_outcomes(rows: int, fixed: float, broken: float) -> None:
    assert mcnemar_power(rows, fixed, broken) == pytest.approx(power_by_counting(rows, fixed, broken), abs=1e-9)


@pytest.mark.parametrize(("rows", "fixed", "broken"), [(0, 0.5, 0.1), (5, 1.0, 0.0), (100, 0.0, 0.0), (5, 0.3, 0.1)])
def test_too_few_rows_have_no_power(rows: int, fixed: float, broken: float) -> None:
    assert mcnemar_power(rows, fixed, broken) == 0.0


def test_six_rows_that_all_turn_right_are_enough() -> None:
    assert mcnemar_power(6, 1.0, 0.0) == pytest.approx(1.0)


@given(st.integers(6, 400), st.floats(0, 0.5), st.floats(0, 0.5))
def test_equal_rates_are_called_different_in_at_most_five_of_a_hundred(rows: int, rate: float, other: float) -> None:
    assert 0 <= mcnemar_power(rows, rate, rate) <= TEST_LEVEL + 1e-9
    assert mcnemar_power(rows, rate, other) == pytest.approx(mcnemar_power(rows, other, rate), abs=1e-9)


@settings(max_examples=40)
@given(st.floats(0.02, 0.5), st.floats(0, 0.5))
def test_the_number_of_rows_reaches_the_power_and_fewer_do_not(fixed: float, broken: float) -> None:
    if abs(fixed - broken) < 0.01:
        return
    rows = mcnemar_rows(fixed, broken)
    assert rows is not None
    assert mcnemar_power(rows, fixed, broken) >= 0.8
    assert mcnemar_power(int(rows * 0.9), fixed, broken) < 0.8


def test_the_formula_is_connors_and_the_exact_number_is_a_little_larger() -> None:
    assert rows_for_power(0.10, 0.22) == 171
    assert mcnemar_rows(0.16, 0.06) == 183


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
def test_the_smallest_significant_split_is_found_for_every_number_of_pairs(level: float) -> None:
    pairs = np.arange(0, 3001)
    critical = _critical_counts(pairs, level)
    assert (2 * stats.binom.cdf(critical, pairs, 0.5) <= level).all()
    assert (2 * stats.binom.cdf(critical + 1, pairs, 0.5) > level).all()


def test_without_a_difference_no_number_of_rows_settles_it() -> None:
    assert mcnemar_rows(0.1, 0.1) is None
    assert mcnemar_rows(0.0, 0.0) is None
    assert rows_for_power(0.0, 0.3) is None
    assert rows_for_power(0.1, 0.0) is None


def test_a_tiny_difference_is_answered_by_the_formula_at_once() -> None:
    rows = mcnemar_rows(0.0501, 0.05)
    assert rows is not None
    assert rows > MOST_EXACT_ROWS
    assert mcnemar_rows(0.05 + 1e-9, 0.05) == 1_000_000_000


def test_the_detectable_difference_is_found_with_the_rows_at_hand() -> None:
    difference = detectable_difference(200, 0.22)
    assert difference is not None
    assert difference == pytest.approx(0.0929, abs=1e-3)
    rows = rows_for_power(difference, 0.22)
    assert rows is not None
    assert rows <= 200
    assert detectable_difference(200, 0.0) is None
    assert detectable_difference(0, 0.2) is None
