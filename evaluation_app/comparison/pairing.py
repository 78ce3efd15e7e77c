"""Puts the rows of two runs side by side: which both evaluated, who was right where, and which rows were left out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evaluation_app.comparison.loading import UNKNOWN, RunRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Labels = NDArray[np.int64]
    Flags = NDArray[np.int8]
    Mask = NDArray[np.bool_]
    Ratio = tuple[Numbers, Numbers]

BOTH_RIGHT, FIXED, BROKEN, BOTH_WRONG = "both_right", "fixed", "broken", "both_wrong"
TRANSITIONS = (FIXED, BROKEN, BOTH_RIGHT, BOTH_WRONG)
ALL, SEEN, UNSEEN = "all", "seen", "unseen"


@dataclass(frozen=True)
class LeftOut:
    """Rows that cannot be paired, by reason; a row counts once."""

    only_in_baseline: int = 0
    only_in_candidate: int = 0
    skipped_in_baseline: int = 0
    skipped_in_candidate: int = 0
    skipped_in_both: int = 0
    without_label: int = 0


@dataclass(frozen=True)
class Pairs:
    """The rows that both runs evaluated, ascending by index; `figures` are (baseline, candidate) ratios by metric."""

    index: Labels
    baseline_right: Mask
    candidate_right: Mask
    seen: Flags
    figures: dict[str, tuple[Ratio, Ratio]]
    predicted: tuple[Labels, Labels] | None
    true: Labels | None

    def __len__(self) -> int:
        return int(self.index.size)

    def where(self, transition: str) -> Mask:
        """Which rows changed in this way."""
        new, old = self.candidate_right, self.baseline_right
        masks = {FIXED: new & ~old, BROKEN: old & ~new, BOTH_RIGHT: old & new, BOTH_WRONG: ~old & ~new}
        return masks[transition]

    def counts(self) -> dict[str, int]:
        return {name: int(self.where(name).sum()) for name in TRANSITIONS}

    def transitions(self) -> list[str]:
        """The transition of each row."""
        names = ((BOTH_WRONG, BROKEN), (FIXED, BOTH_RIGHT))
        return [
            names[new][old]
            for old, new in zip(self.baseline_right.tolist(), self.candidate_right.tolist(), strict=True)
        ]

    def part(self, name: str) -> Pairs:
        """All rows, those that training saw, or those that it did not see."""
        return self if name == ALL else self.take(self.seen == (1 if name == SEEN else 0))

    def without_figures(self, names: Collection[str]) -> Pairs:
        return replace(self, figures={name: ratios for name, ratios in self.figures.items() if name not in names})

    def take(self, mask: Mask | Labels) -> Pairs:
        """The rows of a mask, or at these places."""
        if mask.dtype == bool and mask.all():
            return self  # no second copy of half a million rows
        return replace(
            self,
            index=self.index[mask],
            baseline_right=self.baseline_right[mask],
            candidate_right=self.candidate_right[mask],
            seen=self.seen[mask],
            figures={
                name: ((old[0][mask], old[1][mask]), (new[0][mask], new[1][mask]))
                for name, (old, new) in self.figures.items()
            },
            predicted=None if self.predicted is None else (self.predicted[0][mask], self.predicted[1][mask]),
            true=None if self.true is None else self.true[mask],
        )


def pair_rows(baseline: RunRows, candidate: RunRows) -> tuple[Pairs, LeftOut]:
    """The rows of both, and why others are left out."""
    import numpy as np

    index, at_old, at_new = np.intersect1d(baseline.index, candidate.index, assume_unique=True, return_indices=True)
    by_label = baseline.true is not None and candidate.true is not None
    shared = [name for name in baseline.figures if name in candidate.figures]
    figures = {name: (_rows(baseline.figures[name], at_old), _rows(candidate.figures[name], at_new)) for name in shared}
    right = figures["accuracy" if by_label else "exact_match"]
    pairs = Pairs(
        index=index,
        baseline_right=right[0][0] > 0,
        candidate_right=right[1][0] > 0,
        seen=either_saw(baseline.seen[at_old], candidate.seen[at_new]),
        figures=figures,
        predicted=_labels(baseline.predicted, candidate.predicted, at_old, at_new),
        true=baseline.true[at_old] if baseline.true is not None and by_label else None,
    )
    sayable = (right[0][1] > 0) & (right[1][1] > 0)
    return pairs.take(sayable), _left_out(baseline, candidate, int((~sayable).sum()))


def _rows(ratio: Ratio, places: Labels) -> Ratio:
    if places.size == ratio[0].size:  # ascending and complete: the rows as they are
        return ratio
    return ratio[0][places], ratio[1][places]


def _labels(old: Labels | None, new: Labels | None, at_old: Labels, at_new: Labels) -> tuple[Labels, Labels] | None:
    return None if old is None or new is None else (old[at_old], new[at_new])


def either_saw(old: Flags, new: Flags) -> Flags:
    """Seen when either model saw the row in training; unknown when one of them may have."""
    import numpy as np

    unknown = (old == UNKNOWN) | (new == UNKNOWN)
    return np.where((old == 1) | (new == 1), 1, np.where(unknown, UNKNOWN, 0)).astype(np.int8)


def _left_out(baseline: RunRows, candidate: RunRows, without_label: int) -> LeftOut:
    import numpy as np

    def both(one: Labels, other: Labels) -> int:
        return int(np.isin(one, other, assume_unique=True).sum())

    skipped_new = both(candidate.skipped, baseline.index)
    skipped_old = both(baseline.skipped, candidate.index)
    skipped_both = both(baseline.skipped, candidate.skipped)
    shared = both(baseline.index, candidate.index) + skipped_new + skipped_old + skipped_both
    return LeftOut(
        only_in_baseline=baseline.index.size + baseline.skipped.size - shared,
        only_in_candidate=candidate.index.size + candidate.skipped.size - shared,
        skipped_in_baseline=skipped_old,
        skipped_in_candidate=skipped_new,
        skipped_in_both=skipped_both,
        without_label=without_label,
    )
