"""Bootstrap intervals: against SciPy's own, seeded, never empty, by unit, bounded, and for ratios of sums."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from ftproject.engine.statistics import bootstrap
from ftproject.engine.statistics.bootstrap import Interval, PairedFigure, bootstrap_differences

Numbers = NDArray[np.float64]
SETTINGS: dict[str, Any] = {"level": 0.95, "resamples": 1000, "seed": 0}


def mean_figure(baseline: Numbers, candidate: Numbers) -> PairedFigure:
    """The mean over rows; NaN where a row has no score in either."""
    defined = ~(np.isnan(baseline) | np.isnan(candidate))
    weight = defined.astype(float)
    return PairedFigure((((np.where(defined, baseline, 0), weight), (np.where(defined, candidate, 0), weight)),))


def interval(baseline: Numbers, candidate: Numbers, units: Any = None, **changes: Any) -> Interval:
    labels = np.arange(baseline.size) if units is None else np.asarray(units)
    found = bootstrap_differences({"x": mean_figure(baseline, candidate)}, labels, **{**SETTINGS, **changes})["x"]
    assert found is not None
    return found


def draw(rows: int, fixed: float, broken: float, seed: int = 0) -> tuple[Numbers, Numbers]:
    """Which rows each model has right; half of the concordant ones are right in both."""
    both = (1 - fixed - broken) / 2
    kind = np.random.default_rng(seed).choice(4, size=rows, p=[fixed, broken, both, both])
    return np.isin(kind, [1, 2]).astype(float), np.isin(kind, [0, 2]).astype(float)


def test_it_agrees_with_scipys_percentile_bootstrap() -> None:
    baseline, candidate = draw(400, 0.2, 0.1)
    ours = interval(baseline, candidate, resamples=10_000)
    theirs = stats.bootstrap(
        (candidate, baseline), lambda new, old, axis: (new - old).mean(axis=axis), paired=True, vectorized=True,
        n_resamples=10_000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.006)
    assert ours.difference == pytest.approx(float((candidate - baseline).mean()))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    rows = draw(100, 0.2, 0.1)
    assert interval(*rows) == interval(*rows)
    assert len({interval(*rows, seed=seed) for seed in range(8)}) > 1


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(0, 3))
def test_exchanging_the_models_turns_the_interval_round(rows: int, seed: int) -> None:
    baseline, candidate = draw(rows, 0.3, 0.2, seed)
    there, back = interval(baseline, candidate), interval(candidate, baseline)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_the_interval_holds_its_difference(pairs: list[tuple[float, float]]) -> None:
    values = np.array(pairs)
    found = interval(values[:, 0], values[:, 1], resamples=100)
    assert found.low <= found.difference <= found.high


@pytest.mark.parametrize("rows", [1, 10, 100])
def test_identical_answers_leave_a_doubt_that_shrinks_with_the_rows(rows: int) -> None:
    same = np.ones(rows)
    found = interval(same, same)
    assert found.difference == 0
    assert found.low < 0 < found.high
    assert found.high - found.low < 8 / rows + 0.01


def test_rows_that_belong_together_widen_the_interval() -> None:
    baseline, candidate = draw(50, 0.3, 0.1)
    alone = interval(np.repeat(baseline, 10), np.repeat(candidate, 10))
    together = interval(np.repeat(baseline, 10), np.repeat(candidate, 10), units=np.repeat(np.arange(50), 10))
    single = interval(baseline, candidate)
    assert together.high - together.low > 2.5 * (alone.high - alone.low)
    assert together.high - together.low == pytest.approx(single.high - single.low, rel=0.1)


def test_rows_without_a_score_do_not_count() -> None:
    baseline, candidate = draw(200, 0.2, 0.1)
    padded = np.concatenate([baseline, np.full(300, np.nan)]), np.concatenate([candidate, np.ones(300)])
    assert interval(*padded).difference == pytest.approx(interval(baseline, candidate).difference)


def test_a_figure_that_no_row_defines_has_no_interval_and_no_rows_are_no_error() -> None:
    nothing = np.full(5, np.nan)
    figures = {"undefined": mean_figure(nothing, nothing), "defined": mean_figure(np.zeros(5), np.ones(5))}
    found = bootstrap_differences(figures, np.arange(5), **SETTINGS)
    assert found["undefined"] is None
    assert found["defined"] is not None
    empty = {"x": mean_figure(np.array([]), np.array([]))}
    assert bootstrap_differences(empty, np.array([], dtype=int), **SETTINGS) == {"x": None}


def test_a_ratio_of_sums_weighs_rows_by_their_length() -> None:
    """Character error rate: edits over characters of all rows, not the mean of the rows' own rates."""
    edits, length = np.array([[1.0, 0, 9], [0.0, 0, 0]]), np.array([10.0, 10, 80])
    figure = PairedFigure((((edits[0], length), (edits[1], length)),))
    found = bootstrap_differences({"cer": figure}, np.arange(3), **SETTINGS)["cer"]
    assert found is not None
    assert (found.baseline, found.candidate) == (0.1, 0.0)


def test_a_mean_of_ratios_leaves_out_a_term_that_is_undefined() -> None:
    """Macro precision: a class that nobody predicts has none."""
    ones, zeros = np.ones(4), np.zeros(4)
    hit = np.array([1.0, 1, 0, 0])
    figure = PairedFigure((((hit, ones), (ones, ones)), ((zeros, zeros), (zeros, zeros))))
    found = bootstrap_differences({"macro": figure}, np.arange(4), **SETTINGS)["macro"]
    assert found is not None
    assert (found.baseline, found.candidate) == (0.5, 1.0)


def test_many_rows_go_by_blocks_and_the_width_stays_right(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline, candidate = draw(20_000, 0.2, 0.1)
    whole = interval(baseline, candidate)
    monkeypatch.setattr(bootstrap, "MOST_UNITS", 1000)
    blocks = interval(baseline, candidate)
    assert blocks.difference == whole.difference
    assert blocks.high - blocks.low == pytest.approx(whole.high - whole.low, rel=0.15)
    assert blocks.low == pytest.approx(whole.low, abs=0.002)


def test_a_higher_level_is_a_wider_interval() -> None:
    rows = draw(100, 0.2, 0.1)
    ninety, ninety_nine = interval(*rows, level=0.9), interval(*rows, level=0.99)
    assert ninety_nine.low < ninety.low < ninety.high < ninety_nine.high
