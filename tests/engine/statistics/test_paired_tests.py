"""The exact test of a difference: against SciPy's own, at its edges, and its level when rows belong together."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ftproject.engine.statistics.paired_tests import (
    MOST_FLIPPED,
    TEST_LEVEL,
    holm_adjusted,
    mcnemar_p_value,
    sign_flip_p_value,
)

counts = st.integers(0, 3000)


@given(counts, counts)
def test_mcnemar_is_scipys_exact_binomial_test(fixed: int, broken: int) -> None:
    if fixed + broken == 0:
        assert mcnemar_p_value(fixed, broken) == 1.0
        return
    expected = stats.binomtest(fixed, fixed + broken).pvalue
    assert mcnemar_p_value(fixed, broken) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p_value(broken, fixed) == mcnemar_p_value(fixed, broken)


def test_five_discordant_pairs_can_never_be_significant_and_six_can() -> None:
    assert mcnemar_p_value(5, 0) > TEST_LEVEL
    assert mcnemar_p_value(6, 0) == 2 / 2**6


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=200))
def test_with_rows_on_their_own_the_sign_flip_test_is_mcnemar(differences: list[float]) -> None:
    values = np.array(differences, dtype=float)
    assert sign_flip_p_value(values) == mcnemar_p_value(differences.count(1.0), differences.count(-1.0))


@given(st.lists(st.integers(-3, 3), max_size=10))
def test_flipped_signs_come_near_to_all_signs(differences: list[int]) -> None:
    values = np.array(differences, dtype=float)
    sums = [abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
            for signs in product((1, -1), repeat=len(values))]  # fmt: skip
    exact = sum(value >= abs(values.sum()) for value in sums) / len(sums)
    assert sign_flip_p_value(values) == pytest.approx(exact, abs=0.02)


def test_flipped_signs_agree_with_scipys_permutation_test() -> None:
    values = np.random.default_rng(1).normal(0.15, 1, 150)
    ours = sign_flip_p_value(values)
    theirs = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=9999, vectorized=True, rng=np.random.default_rng(2)
    )
    assert ours == pytest.approx(theirs.pvalue, abs=0.02)


def test_above_the_limit_the_normal_distribution_takes_over_without_a_jump() -> None:
    random = np.random.default_rng(3)
    values = random.normal(0.025, 1, MOST_FLIPPED)
    flipped = sign_flip_p_value(values)
    normal = math.erfc(abs(values.sum()) / math.sqrt(2 * (values**2).sum()))
    assert flipped == pytest.approx(normal, abs=0.02)
    assert sign_flip_p_value(np.append(values, 1e-9)) == pytest.approx(normal, abs=1e-6)


@given(st.lists(st.floats(-1, 1), max_size=60), st.integers(0, 5))
def test_exchanging_the_models_changes_no_p_and_the_seed_decides_the_rest(values: list[float], seed: int) -> None:
    differences = np.array(values, dtype=float)
    p = sign_flip_p_value(differences, seed=seed)
    assert 0 < p <= 1
    assert p == sign_flip_p_value(-differences, seed=seed) == sign_flip_p_value(differences, seed=seed)


def test_nothing_differs_nothing_is_claimed() -> None:
    assert sign_flip_p_value(np.zeros(100)) == 1.0
    assert sign_flip_p_value(np.array([])) == 1.0


def test_rows_that_belong_together_are_one_witness_and_not_many() -> None:
    """Ten pictures of ten rows each; on every picture the models differ in all rows alike."""
    rows = np.repeat([1.0, 1, 1, 1, 1, 1, 1, -1, -1, -1], 10)
    by_picture = rows.reshape(10, 10).sum(axis=1)
    assert sign_flip_p_value(rows) < 0.001
    assert sign_flip_p_value(by_picture) == mcnemar_p_value(7, 3) > 0.3


def test_holm_keeps_the_order_and_never_lowers_a_p() -> None:
    assert holm_adjusted([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]
    assert holm_adjusted([0.2]) == [0.2]
    assert holm_adjusted([]) == []
    assert holm_adjusted([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_p_itself_and_bonferroni(p_values: list[float]) -> None:
    for raw, adjusted in zip(p_values, holm_adjusted(p_values), strict=True):
        assert raw <= adjusted <= min(1.0, raw * len(p_values)) + 1e-12
