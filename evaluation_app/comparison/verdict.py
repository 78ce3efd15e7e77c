"""The verdict: better, worse or cannot tell, the test behind it, and one sentence that needs no statistics to read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evaluation_app.comparison.pairing import SEEN, UNSEEN, Pairs
from ftproject.engine.statistics.bootstrap import Interval, unit_sums
from ftproject.engine.statistics.paired_tests import TEST_LEVEL, sign_flip_p_value
from ftproject.engine.statistics.power import MOST_ROWS, detectable_difference, mcnemar_rows, rows_for_power

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Labels = NDArray[np.int64]

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot_tell"
MCNEMAR, SIGN_FLIP = "mcnemar_exact", "sign_flip"
# Scores that are right or wrong in each row.
RIGHT_OR_WRONG = frozenset({"exact_match", "accuracy"})


@dataclass(frozen=True)
class Evidence:
    """What the rows say about one metric; differences are candidate minus baseline, in the metric's own unit."""

    metric: str
    higher_is_better: bool
    rows: str
    num_rows: int
    num_units: int
    difference: float
    p_value: float
    test: str
    rows_to_settle: int | None
    detectable_difference: float | None
    any_seen: bool
    p_value_adjusted: float | None = None

    @property
    def verdict(self) -> str:
        """A row that training saw proves nothing, whatever its p."""
        p = self.p_value if self.p_value_adjusted is None else self.p_value_adjusted
        if self.any_seen or p > TEST_LEVEL or self.difference == 0:
            return CANNOT_TELL
        return BETTER if (self.difference > 0) == self.higher_is_better else WORSE

    @property
    def rows_missing(self) -> int | None:
        """How many rows would settle it; None when it is settled, or when more such rows would settle nothing."""
        return None if self.any_seen or self.verdict != CANNOT_TELL else self.rows_to_settle

    def adjusted(self, p_value: float) -> Evidence:
        return replace(self, p_value_adjusted=p_value)


def weigh(pairs: Pairs, units: Labels, *, metric: str, higher_is_better: bool, rows: str, seed: int) -> Evidence:
    """Tests one metric over these rows; rows of one unit stand or fall together."""
    moved, weight = _moves(pairs, metric)
    sums = unit_sums(moved, units)
    num_units = int(units.max(initial=-1)) + 1
    plain = num_units == len(pairs) and metric in RIGHT_OR_WRONG
    mean, mean_square = _moments(moved)
    # How many dependent rows are worth one row on its own.
    effect = max(1.0, float((sums**2).sum() / (moved**2).sum())) if mean_square else 1.0
    detectable = detectable_difference(len(pairs) / effect, mean_square)
    return Evidence(
        metric=metric,
        higher_is_better=higher_is_better,
        rows=rows,
        num_rows=len(pairs),
        num_units=num_units,
        difference=mean / weight if weight else 0.0,
        p_value=sign_flip_p_value(sums, seed=seed),
        test=MCNEMAR if plain else SIGN_FLIP,
        rows_to_settle=_rows_needed(pairs, metric, mean, mean_square, effect),
        detectable_difference=None if detectable is None or not weight else detectable / weight,
        any_seen=bool((pairs.seen == 1).any()),
    )


def _moves(pairs: Pairs, metric: str) -> tuple[Numbers, float]:
    """What each row adds to the difference of the two figures, and how much weight a row has on average.

    A ratio of sums moves by (numerator - pooled figure x denominator); with equal denominators on both sides that is
    the difference of the numerators.
    """
    (old_over, old_under), (new_over, new_under) = pairs.figures[metric]
    weight = float(old_under.sum() + new_under.sum())
    if not len(pairs) or not weight:
        return new_over - old_over, 0.0
    pooled = float(old_over.sum() + new_over.sum()) / weight
    return (new_over - old_over) - pooled * (new_under - old_under), weight / 2 / len(pairs)


def _moments(moved: Numbers) -> tuple[float, float]:
    return (float(moved.mean()), float((moved**2).mean())) if moved.size else (0.0, 0.0)


def _rows_needed(pairs: Pairs, metric: str, mean: float, mean_square: float, effect: float) -> int | None:
    if metric in RIGHT_OR_WRONG and len(pairs):
        counts = pairs.counts()
        rows = mcnemar_rows(counts["fixed"] / len(pairs), counts["broken"] / len(pairs))
    else:
        rows = rows_for_power(mean, mean_square)
    return None if rows is None else min(MOST_ROWS, math.ceil(rows * effect))


@dataclass(frozen=True)
class Names:
    baseline: str
    candidate: str


def sentence(evidence: Evidence, pairs: Pairs, interval: Interval | None, *, names: Names, level: float) -> str:
    """One or two sentences in plain words."""
    if evidence.num_rows == 0:
        return "Cannot tell: there is no row that both runs evaluated."
    if evidence.any_seen:
        return (
            f"Cannot tell: of these {evidence.num_rows} rows training saw {int((pairs.seen == 1).sum())}, and a gain "
            "on such rows is no proof. Evaluate rows that training did not see (rows=heldout)."
        )
    if evidence.p_value == 1.0 and evidence.difference == 0:
        return _nothing_differs(evidence, pairs)
    scores = _scores(evidence, pairs, interval, names, level)
    if evidence.verdict == CANNOT_TELL:
        return f"Cannot tell: {scores}; {_chance(evidence)}. {_more_rows(evidence)}"
    return f"{evidence.verdict.capitalize()}: {scores}; {_chance(evidence)}."


def _nothing_differs(evidence: Evidence, pairs: Pairs) -> str:
    if evidence.metric not in RIGHT_OR_WRONG:
        return f"Cannot tell: {evidence.metric} is the same for both on {_rows(evidence)}."
    counts = pairs.counts()
    right = counts["both_right"] + counts["fixed"]
    if counts["fixed"]:
        return f"Cannot tell: both are right in {right} of {_rows(evidence)}; {counts['fixed']} fixed, as many broken."
    hint = "" if right else " Where no answer is right to the letter, compare by another metric, say token_f1."
    return f"Cannot tell: both are right in the same {right} of {_rows(evidence)}.{hint}"


def _rows(evidence: Evidence) -> str:
    kind = {UNSEEN: " that training did not see", SEEN: " that training saw"}.get(evidence.rows, "")
    groups = f" ({evidence.num_units} groups that share an image or prompt)"
    return f"{evidence.num_rows} rows{kind}{groups if evidence.num_units < evidence.num_rows else ''}"


def _scores(evidence: Evidence, pairs: Pairs, interval: Interval | None, names: Names, level: float) -> str:
    if evidence.metric in RIGHT_OR_WRONG:
        old, new = int(pairs.baseline_right.sum()), int(pairs.candidate_right.sum())
        said = f"{names.candidate} is right in {new} of {_rows(evidence)}, {names.baseline} in {old}"
        scale, unit = 100.0, " points"
    else:
        old_value, new_value = _values(pairs, evidence.metric)
        said = f"{evidence.metric} is {new_value:.4g} for {names.candidate} and {old_value:.4g} for {names.baseline}"
        said += f", over {_rows(evidence)}"
        scale, unit = 1.0, ""
    if interval is None:
        return said
    shown = (
        f"{scale * value:+.{1 if scale > 1 else 4}f}" for value in (interval.difference, interval.low, interval.high)
    )
    difference, low, high = shown
    return f"{said} ({difference}{unit}, {100 * level:g} % interval {low} to {high})"


def _values(pairs: Pairs, metric: str) -> tuple[float, float]:
    old, new = ((float(over.sum()), float(under.sum())) for over, under in pairs.figures[metric])
    return (old[0] / old[1] if old[1] else 0.0, new[0] / new[1] if new[1] else 0.0)


def _chance(evidence: Evidence) -> str:
    p = evidence.p_value if evidence.p_value_adjusted is None else evidence.p_value_adjusted
    said = "fewer than 1 in 10,000" if p < 0.0001 else f"about {_one_in(p)}"
    several = ", counted for all models compared here" if evidence.p_value_adjusted is not None else ""
    return f"luck alone would make so large a difference in {said} comparisons{several}"


def _one_in(p: float) -> str:
    for base in (100, 1000, 10_000):
        if round(p * base) >= 1 and (p * base >= 9.5 or base == 10_000 or abs(round(p * base) - p * base) < 0.1):
            return f"{round(p * base)} in {base:,}"
    return f"{max(1, round(p * 10_000))} in 10,000"


def _more_rows(evidence: Evidence) -> str:
    if evidence.rows_to_settle is None:
        return "No number of rows settles a difference of zero."
    if evidence.rows_to_settle >= MOST_ROWS:
        return "No realistic number of rows would settle a difference so small."
    return f"If the difference is real, about {evidence.rows_to_settle:,} such rows would show it (4 times in 5)."
