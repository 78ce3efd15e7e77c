"""The verdict does not claim what is not there, and finds what is: the simulation of benchmarks/verdicts.py, smaller.

Fixed seeds, and bounds that a correct verdict would miss less than once in a million seeds.
"""

from functools import partial

import numpy as np
from scipy import stats

from benchmarks.verdicts import discordant, false_verdicts, grouped_rows, paired_rows, verdict_of
from ftproject.engine.statistics.bootstrap import PairedFigure, bootstrap_differences
from ftproject.engine.statistics.power import mcnemar_power

COMPARISONS = 200
UNLIKELY = 1e-6
MOST_FALSE = int(stats.binom.isf(UNLIKELY, COMPARISONS, 0.05))


def test_models_that_are_alike_are_seldom_called_better_or_worse() -> None:
    draw = partial(paired_rows, rows=120, base=0.6, new=0.6, likeness=0.8)
    assert false_verdicts(draw, comparisons=COMPARISONS) <= MOST_FALSE


def test_rows_of_one_image_do_not_make_luck_look_like_proof() -> None:
    draw = partial(grouped_rows, groups=30, size=5, accuracy=0.6)
    by_image = false_verdicts(draw, np.repeat(np.arange(30), 5), comparisons=COMPARISONS)
    assert by_image <= MOST_FALSE
    assert false_verdicts(draw, comparisons=COMPARISONS) > MOST_FALSE, "rows counted one by one would mislead"


def test_a_gain_of_ten_points_is_found_as_often_as_computed() -> None:
    random = np.random.default_rng(7)
    verdicts = []
    for _ in range(COMPARISONS):
        kind = random.choice(3, size=200, p=[0.155, 0.055, 0.79])
        verdicts.append(verdict_of((kind == 1) | (kind == 2), (kind == 0) | (kind == 2)))
    power = mcnemar_power(200, 0.155, 0.055)
    assert power > 0.8
    least, most = stats.binom.ppf([UNLIKELY / 2, 1 - UNLIKELY / 2], COMPARISONS, power)
    assert least <= verdicts.count("better") <= most
    assert verdicts.count("worse") == 0


def test_the_intervals_hold_the_truth_even_where_almost_no_row_differs() -> None:
    """Two of a hundred rows fixed, one broken: SciPy's percentile interval of 20 such rows holds it in 45 of 100."""
    random, hits, rows = np.random.default_rng(8), 0, 20
    for _ in range(COMPARISONS):
        moved = discordant(0.02, 0.01)(random, rows)
        figure = PairedFigure((((np.zeros(rows), np.ones(rows)), (moved, np.ones(rows))),))
        found = bootstrap_differences({"x": figure}, np.arange(rows), level=0.95, resamples=300, seed=0)["x"]
        hits += found is not None and found.low <= 0.01 <= found.high
    assert hits >= stats.binom.ppf(UNLIKELY, COMPARISONS, 0.94)
