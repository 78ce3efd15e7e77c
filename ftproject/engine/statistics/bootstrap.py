"""Seeded bootstrap intervals of every figure's difference, in time and memory that do not grow with the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Labels = NDArray[np.int64]
    Sides = tuple[Numbers, Numbers]

# More units than this are resampled in random blocks.
MOST_UNITS = 10_000
# Numbers drawn at once: 8 MB each for the draws and for the weights.
CHUNK = 1_000_000


@dataclass(frozen=True)
class PairedFigure:
    """A figure of two models that is a ratio of sums over rows, or the mean of several such ratios (macro averages).

    Each term is the baseline's (numerators, denominators) and the candidate's, arrays with one number per row. A mean
    over rows has 1 as denominator where a row has a score, else 0; the numerator is then 0 too.
    """

    terms: tuple[tuple[tuple[Numbers, Numbers], tuple[Numbers, Numbers]], ...]


@dataclass(frozen=True)
class Interval:
    """A figure of the baseline and of the candidate, the difference (candidate minus baseline) and its bounds."""

    baseline: float
    candidate: float
    difference: float
    low: float
    high: float


def unit_sums(values: Numbers, units: Labels) -> Numbers:
    """The sum of the values of each unit; `units` are labels 0 .. k-1, one per row."""
    import numpy as np

    sums = np.bincount(units, weights=values, minlength=int(units.max(initial=-1)) + 1)
    return sums.astype(np.float64, copy=False)


def bootstrap_differences(
    figures: Mapping[str, PairedFigure], units: Labels, *, level: float, resamples: int, seed: int
) -> dict[str, Interval | None]:
    """The interval of each figure's difference, all in the same draws; None for a figure that no row defines.

    Percentile bootstrap over units: rows that belong together are drawn together. One unit that the candidate wins
    wholly and one that the baseline wins are added, as Bonett and Price (2012) do for paired proportions: without them
    ten rows without a discordant pair would get the interval [0, 0]. Measured coverage, and that of BCa, which was
    no better: docs/benchmarks.md. Memory and time are bounded by MOST_UNITS.
    """
    import numpy as np

    terms = [(name, *pair) for name, figure in figures.items() for pair in figure.terms]
    if not terms or not units.size:
        return dict.fromkeys(figures)
    count = int(units.max()) + 1
    blocks = _in_blocks(units, count, seed)
    columns = np.column_stack([unit_sums(column, blocks) for _, base, new in terms for column in (*base, *new)])
    names = [name for name, *_ in terms]
    sums = _resampled_sums(columns, _two_pseudo_units(columns, count), resamples, seed)
    observed = _figures(columns.sum(axis=0)[None, :], names)
    drawn = _figures(sums, names)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: _interval(observed[name], drawn[name], tails) for name in figures}


def _interval(observed: Sides, drawn: Sides, tails: list[float]) -> Interval | None:
    import numpy as np

    baseline, candidate = float(observed[0][0]), float(observed[1][0])
    if math.isnan(baseline) or math.isnan(candidate):
        return None
    difference = candidate - baseline
    low, high = np.nanquantile(drawn[1] - drawn[0], tails)
    # The two added units draw the bounds a little towards 0, in extreme cases past the difference itself.
    return Interval(baseline, candidate, difference, min(float(low), difference), max(float(high), difference))


def _figures(sums: Numbers, names: Sequence[str]) -> dict[str, Sides]:
    """Per figure (baseline, candidate) of each line of sums; four columns a term, NaN where no row counts."""
    import numpy as np

    ratios = np.full((sums.shape[0], sums.shape[1] // 2), np.nan)
    np.divide(sums[:, 0::2], sums[:, 1::2], out=ratios, where=sums[:, 1::2] > 1e-12)
    found = {}
    for name in dict.fromkeys(names):
        places = [place for place, other in enumerate(names) if other == name]
        base, new = (ratios[:, [2 * place + side for place in places]] for side in (0, 1))
        found[name] = (_mean_of_defined(base), _mean_of_defined(new))
    return found


def _mean_of_defined(ratios: Numbers) -> Numbers:
    import numpy as np

    defined = ~np.isnan(ratios)
    count = defined.sum(axis=1)
    mean = np.full(ratios.shape[0], np.nan)
    np.divide(np.where(defined, ratios, 0).sum(axis=1), count, out=mean, where=count > 0)
    return mean


def _two_pseudo_units(columns: Numbers, count: int) -> Numbers:
    """One unit of average weight in which the candidate is wholly right and the baseline wholly wrong; its mirror."""
    import numpy as np

    base_weight, new_weight = columns[:, 1::4].sum(axis=0) / count, columns[:, 3::4].sum(axis=0) / count
    won, lost = np.zeros((2, columns.shape[1]))
    won[1::4] = lost[1::4] = lost[0::4] = base_weight
    won[3::4] = lost[3::4] = won[2::4] = new_weight
    return np.vstack([won, lost])


def _in_blocks(units: Labels, count: int, seed: int) -> Labels:
    """At most MOST_UNITS labels: units put together at random; sums of independent units stay independent."""
    import numpy as np

    if count <= MOST_UNITS:
        return units
    block: Labels = np.random.default_rng([seed, 1]).permutation(count) % MOST_UNITS
    return block[units]


def _resampled_sums(units: Numbers, pseudo: Numbers, resamples: int, seed: int) -> Numbers:
    """Sums of the columns over units and the two pseudo units, drawn with replacement: resamples x columns, twice.

    Each draw counts a second time with the two pseudo units exchanged: so models that are exchanged get exactly
    the mirrored interval.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    size = units.shape[0] + 2
    step = max(1, CHUNK // size)
    found = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = random.integers(0, size, (count, size)) + np.arange(count)[:, None] * size
        weights = np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size).astype(float)
        sums, added = weights[:, :-2] @ units, weights[:, -2:]
        found += [sums + added @ pseudo, sums + added[:, ::-1] @ pseudo]
    return np.vstack(found)
