"""Whether a difference between two models on the same rows is more than luck: exact McNemar, sign flips, Holm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

# Two-sided, everywhere a verdict is made: the level at which "better" and "worse" are said.
TEST_LEVEL = 0.05
FLIPS = 9_999
# Above this many units that differ the sum of signed differences is as good as normal, and flipping takes seconds.
MOST_FLIPPED = 5_000
# Signs drawn at once.
CHUNK = 1_000_000


def mcnemar_p_value(fixed: int, broken: int) -> float:
    """The two-sided p of the exact McNemar test; 1.0 without discordant pairs.

    Under the null hypothesis a discordant pair falls either way with probability one half (McNemar 1947, the exact
    binomial form). SciPy's `binomtest(fixed, fixed + broken)` without importing `scipy.stats`, which takes 73 MB.

    >>> mcnemar_p_value(9, 1)
    0.021484375
    >>> mcnemar_p_value(0, 0)
    1.0
    """
    from scipy.special import bdtr

    if fixed + broken == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(float(min(fixed, broken)), fixed + broken, 0.5)))


def sign_flip_p_value(differences: Numbers, *, seed: int = 0) -> float:
    """The two-sided p that the sum of independent differences, one per unit, would be so far from 0 by luck.

    Under the null hypothesis the two models' names could be swapped within any unit, so the signs are free. Where all
    differences are of one size this is the exact McNemar test; otherwise signs are flipped FLIPS times (the
    observed one counted, so the test keeps its level), and above MOST_FLIPPED units the sum is taken as normal.
    """
    import numpy as np

    moved = np.abs(differences[differences != 0])
    if moved.size == 0:
        return 1.0
    observed = float(abs(differences.sum()))
    if np.all(moved == moved[0]):
        more = int((differences > 0).sum())
        return mcnemar_p_value(more, moved.size - more)
    if moved.size > MOST_FLIPPED:
        return math.erfc(observed / math.sqrt(2 * float((moved**2).sum())))
    return (1 + _as_far(moved, observed, seed)) / (1 + FLIPS)


def _as_far(moved: Numbers, observed: float, seed: int) -> int:
    """How many of FLIPS random signings of the (positive) differences sum up at least so far from 0."""
    import numpy as np

    random = np.random.default_rng(seed)
    step = max(1, CHUNK // moved.size)
    found = 0
    for start in range(0, FLIPS, step):
        count = min(step, FLIPS - start)
        signs = random.integers(0, 2, (count, moved.size), dtype=np.int8) * 2 - 1
        found += int((np.abs(signs @ moved) >= observed - 1e-9).sum())
    return found


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): with it, the chance of any false claim among all of them keeps the level.

    >>> holm_adjusted([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
