"""How many rows would settle a difference, and which difference the rows at hand can show."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ftproject.engine.statistics.paired_tests import TEST_LEVEL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Labels = NDArray[np.int64]

POWER = 0.8
# Exact power beyond this many rows is not worth its time: the normal formula is within 2 % there (measured).
MOST_EXACT_ROWS = 100_000
MOST_ROWS = 1_000_000_000


def mcnemar_power(rows: int, fixed_rate: float, broken_rate: float, *, level: float = TEST_LEVEL) -> float:
    """The chance that the exact McNemar test finds a difference among so many rows: the unconditional exact power.

    The number of discordant pairs is binomial, and given it the number of fixed ones is; tails beyond seven standard
    deviations are left out.
    """
    import numpy as np
    from scipy.special import bdtr, bdtrc

    discordance = fixed_rate + broken_rate
    if rows < 1 or discordance <= 0:
        return 0.0
    spread = 7 * math.sqrt(rows * discordance * max(1 - discordance, 0)) + 7
    first, last = max(0, math.floor(rows * discordance - spread)), min(rows, math.ceil(rows * discordance + spread))
    pairs = np.arange(first, last + 1)
    critical, share = _critical_counts(pairs, level), fixed_rate / discordance
    testable = critical >= 0
    pairs, critical = pairs[testable], critical[testable]
    rejected = bdtr(critical, pairs, share) + bdtrc(pairs - critical - 1.0, pairs, share)
    return float((_binomial_mass(pairs, rows, discordance) * rejected).sum())


def _critical_counts(pairs: Labels, level: float) -> Numbers:
    """For each number of discordant pairs the largest smaller side that is still significant; -1 when none is.

    Looked for around the normal quantile: SciPy's own inverse, bdtrik, takes 25 us a number, and thousands are needed.
    """
    import numpy as np
    from scipy.special import bdtr, ndtri

    near = np.floor((pairs - 1) / 2 + float(ndtri(level / 2)) * np.sqrt(pairs) / 2)
    candidates = near + np.arange(2, -3, -1)[:, None]
    significant = (candidates >= 0) & (2 * bdtr(np.maximum(candidates, 0), pairs, 0.5) <= level)
    largest: Numbers = np.where(significant, candidates, -1.0).max(axis=0)
    return largest


def _binomial_mass(counts: Labels, trials: int, probability: float) -> Numbers:
    import numpy as np
    from scipy.special import gammaln, xlog1py, xlogy

    ways = gammaln(trials + 1) - gammaln(counts + 1) - gammaln(trials - counts + 1)
    mass: Numbers = np.exp(ways + xlogy(counts, probability) + xlog1py(trials - counts, -probability))
    return mass


def rows_for_power(mean: float, mean_square: float, *, level: float = TEST_LEVEL, power: float = POWER) -> int | None:
    """How many rows find a true mean difference with this power: Connor's formula (1987); None without a difference.

    `mean_square` is the mean of the squared differences of the rows; for right and wrong it is the share of discordant
    pairs, and the formula is the usual one of the McNemar test.
    """
    from scipy.special import ndtri

    if mean == 0 or mean_square <= 0:
        return None
    under_null, under_truth = math.sqrt(mean_square), math.sqrt(max(mean_square - mean**2, 0))
    root = (float(ndtri(1 - level / 2)) * under_null + float(ndtri(power)) * under_truth) / abs(mean)
    return min(MOST_ROWS, math.ceil(root**2))


def mcnemar_rows(
    fixed_rate: float, broken_rate: float, *, level: float = TEST_LEVEL, power: float = POWER
) -> int | None:
    """How many rows the exact McNemar test needs to find such rates with this power; None when they are equal.

    By bisection of the exact power; beyond MOST_EXACT_ROWS, where both agree, by Connor's formula.
    """
    guess = rows_for_power(fixed_rate - broken_rate, fixed_rate + broken_rate, level=level, power=power)
    if guess is None or guess > MOST_EXACT_ROWS:
        return guess
    low, high = int(0.9 * guess), int(1.1 * guess) + 1
    while mcnemar_power(low, fixed_rate, broken_rate, level=level) >= power:
        low //= 2
    while mcnemar_power(high, fixed_rate, broken_rate, level=level) < power:
        low, high = high, 2 * high
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        reached = mcnemar_power(middle, fixed_rate, broken_rate, level=level) >= power
        low, high = (low, middle) if reached else (middle, high)
    return high


def detectable_difference(
    rows: float, mean_square: float, *, level: float = TEST_LEVEL, power: float = POWER
) -> float | None:
    """About the smallest true mean difference that so many rows show with this power; None when no row differs at all.

    From the normal formula without its smaller term, so a little too large.

    >>> round(detectable_difference(200, 0.22), 3)
    0.093
    """
    from scipy.special import ndtri

    if rows < 1 or mean_square <= 0:
        return None
    return float(ndtri(1 - level / 2) + ndtri(power)) * math.sqrt(mean_square / rows)
