"""How often the verdict errs and what it finds: seeded simulations of paired runs through the product's own code."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.instance import print_table
from evaluation_app.comparison.pairing import Pairs
from evaluation_app.comparison.verdict import CANNOT_TELL, weigh
from ftproject.engine.statistics.bootstrap import PairedFigure, bootstrap_differences
from ftproject.engine.statistics.power import mcnemar_power

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
Random = np.random.Generator

COMPARISONS = 1000
SEED = 20261122
LEVEL, RESAMPLES = 0.95, 1000
ROWS_OF_LARGE = 500_000


def main() -> None:
    print_table("Verdict without a true difference (bar: at most 6 %)", list(null_rows()))
    print_table("Verdict with a true gain of 10 points at 200 rows", list(power_rows()))
    print_table("Coverage of 95 % intervals", list(coverage_rows()))
    print_table(f"{ROWS_OF_LARGE:,} rows", list(large_rows()))


def paired_rows(random: Random, rows: int, base: float, new: float, likeness: float) -> tuple[Mask, Mask]:
    """Right or wrong of two models: rows differ in difficulty, and the models agree on it with this correlation."""
    common, own, other = random.normal(size=(3, rows))
    mix, rest = np.sqrt(likeness), np.sqrt(1 - likeness)
    return mix * common + rest * own < stats.norm.ppf(base), mix * common + rest * other < stats.norm.ppf(new)


def grouped_rows(random: Random, groups: int, size: int, accuracy: float) -> tuple[Mask, Mask]:
    """The same without a difference on average; rows of one image are mostly right or wrong together in each model."""
    image = random.normal(size=(2, groups, 1)) * np.sqrt(0.6)
    own = random.normal(size=(2, groups, size)) * np.sqrt(0.4)
    right = (image + own < stats.norm.ppf(accuracy)).reshape(2, -1)
    return right[0], right[1]


def pairs_of(baseline: Mask, candidate: Mask) -> Pairs:
    one = np.ones(baseline.size)
    return Pairs(
        index=np.arange(baseline.size),
        baseline_right=baseline,
        candidate_right=candidate,
        seen=np.zeros(baseline.size, dtype=np.int64),
        figures={"exact_match": ((baseline.astype(float), one), (candidate.astype(float), one))},
        predicted=None,
        true=None,
    )


def verdict_of(baseline: Mask, candidate: Mask, units: Labels | None = None) -> str:
    labels = np.arange(baseline.size) if units is None else units
    pairs = pairs_of(baseline, candidate)
    return weigh(pairs, labels, metric="exact_match", higher_is_better=True, rows="all", seed=0).verdict


def false_verdicts(
    draw: Callable[[Random], tuple[Mask, Mask]], units: Labels | None = None, *, comparisons: int = COMPARISONS
) -> int:
    """Verdicts other than "cannot tell"."""
    random = np.random.default_rng(SEED)
    return sum(verdict_of(*draw(random), units) != CANNOT_TELL for _ in range(comparisons))


def null_rows() -> Iterator[tuple[str, str, str]]:
    for rows in (30, 200, 1000):
        for likeness in (0.5, 0.8, 0.95):
            draw = partial(paired_rows, rows=rows, base=0.6, new=0.6, likeness=likeness)
            wrong = false_verdicts(draw)
            yield f"{rows} rows, both 60 % right, correlation {likeness}", percent(wrong), "6 %"
    units = np.repeat(np.arange(40), 5)
    draw = partial(grouped_rows, groups=40, size=5, accuracy=0.6)
    wrong = false_verdicts(draw, units)
    yield "200 rows of 40 images, judged by image", percent(wrong), "6 %"
    naive = false_verdicts(draw)
    yield "the same, had each row counted for itself", percent(naive), ""


def power_rows() -> Iterator[tuple[str, str, str]]:
    for likeness in (0.0, 0.5, 0.8, 0.95):
        random = np.random.default_rng(SEED)
        found = [verdict_of(*paired_rows(random, 200, 0.6, 0.7, likeness)) for _ in range(COMPARISONS)]
        large = paired_rows(np.random.default_rng(1), 2_000_000, 0.6, 0.7, likeness)
        fixed, broken = float((large[1] & ~large[0]).mean()), float((large[0] & ~large[1]).mean())
        computed = f"computed {100 * mcnemar_power(200, fixed, broken):.1f} %"
        name = f"60 % to 70 % right, correlation {likeness} ({100 * (fixed + broken):.0f} % of rows differ)"
        yield name, f"better {percent(found.count('better'))}, worse {percent(found.count('worse'))}", computed


def percent(count: int, of: int = COMPARISONS) -> str:
    return f"{100 * count / of:.1f} %"


# What a row's score may be: (differences, their true mean).
Case = Callable[[Random, int], Numbers]


def discordant(fixed: float, broken: float) -> Case:
    def draw(random: Random, rows: int) -> Numbers:
        return random.choice([1.0, -1.0, 0.0], p=[fixed, broken, 1 - fixed - broken], size=rows)

    return draw


def token_f1(random: Random, rows: int) -> Numbers:
    """Answers of six words; in four of ten rows the candidate draws its words anew, with a better chance."""
    old = random.binomial(6, 0.6, rows)
    return np.where(random.random(rows) < 0.6, 0, random.binomial(6, 0.7, rows) - old) / 6


CASES: dict[str, tuple[Case, float]] = {
    "16 % fixed, 6 % broken": (discordant(0.16, 0.06), 0.10),
    "5 % fixed, 5 % broken": (discordant(0.05, 0.05), 0.0),
    "2 % fixed, 1 % broken": (discordant(0.02, 0.01), 0.01),
    "90 % fixed, 1 % broken": (discordant(0.90, 0.01), 0.89),
    "token F1": (token_f1, 0.04),
}


def coverage_rows() -> Iterator[tuple[str, str, str]]:
    for name, (draw, truth) in CASES.items():
        for rows in (20, 50, 200, 1000):
            random = np.random.default_rng(SEED)
            hits = np.array([covered(draw(random, rows), truth, random) for _ in range(COMPARISONS)]).sum(axis=0)
            shown = zip(("ours", "percentile", "BCa"), hits, strict=True)
            yield f"{name}, {rows} rows", ", ".join(f"{how} {percent(hit)}" for how, hit in shown), "95 %"


def covered(differences: Numbers, truth: float, random: Random) -> list[bool]:
    """Whether our interval, SciPy's percentile and SciPy's BCa interval hold the true mean."""
    one, zero = np.ones(differences.size), np.zeros(differences.size)
    figure = {"x": PairedFigure((((zero, one), (differences, one)),))}
    seed = int(random.integers(2**31))
    found = bootstrap_differences(figure, np.arange(differences.size), level=LEVEL, resamples=RESAMPLES, seed=seed)["x"]
    assert found is not None
    intervals = [
        (found.low, found.high),
        *(scipy_interval(differences, method, random) for method in ("percentile", "BCa")),
    ]
    return [low - 1e-9 <= truth <= high + 1e-9 for low, high in intervals]


def scipy_interval(differences: Numbers, method: str, random: Random) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BCa of rows that are all alike is NaN, and holds nothing
        found: Any = stats.bootstrap(
            (differences,), np.mean, n_resamples=RESAMPLES, method=method, vectorized=True, rng=random
        ).confidence_interval
    return float(found.low), float(found.high)


def large_rows() -> Iterator[tuple[str, str, str]]:
    random = np.random.default_rng(SEED)
    right = paired_rows(random, ROWS_OF_LARGE, 0.6, 0.61, 0.8)
    pairs, units = pairs_of(*right), np.arange(ROWS_OF_LARGE)
    figures = {f"metric {number}": PairedFigure((pairs.figures["exact_match"],)) for number in range(6)}
    started = time.monotonic()
    weigh(pairs, units, metric="exact_match", higher_is_better=True, rows="all", seed=0)
    tested = time.monotonic() - started
    bootstrap_differences(figures, units, level=LEVEL, resamples=2000, seed=0)
    whole = time.monotonic() - started
    yield "test, power and rows that would settle it", f"{tested:.2f} s", ""
    yield "with the intervals of six metrics, 2,000 resamples", f"{whole:.2f} s", ""
