"""The figures whose difference a comparison gives: one per metric, and those of the classes in classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evaluation_app.comparison.pairing import Pairs
from evaluation_app.models import EvaluationRun
from ftproject.engine.metrics import METRICS
from ftproject.engine.statistics.bootstrap import PairedFigure

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Labels = NDArray[np.int64]

# Each label takes twelve columns of the bootstrap.
MOST_CLASSES = 20
CLASS_FIGURES = ("precision", "recall", "f1")


def higher_is_better(metric: str) -> bool:
    return METRICS[metric].higher_is_better if metric in METRICS else True


def paired_figures(pairs: Pairs, *, without: Sequence[str] = ()) -> dict[str, PairedFigure]:
    """The figure of each metric over these rows."""
    return {name: PairedFigure((ratios,)) for name, ratios in pairs.figures.items() if name not in without}


def class_figures(pairs: Pairs, baseline: EvaluationRun, candidate: EvaluationRun) -> dict[str, PairedFigure]:
    """Precision, recall and F1 as the runs report them: of the positive label, else the mean over the labels.

    Nothing when the runs do not have the same labels, or more than MOST_CLASSES of them to average over.
    """
    old, new = (_facts(run) for run in (baseline, candidate))
    if old != new or pairs.true is None or pairs.predicted is None:
        return {}
    labels, positive = old
    places = [labels.index(positive)] if positive in labels else list(range(len(labels)))
    if not places or len(places) > MOST_CLASSES:
        return {}
    sides = [[_ratios(predicted, pairs.true, place) for place in places] for predicted in pairs.predicted]
    return {
        name: PairedFigure(tuple((one[name], other[name]) for one, other in zip(*sides, strict=True)))
        for name in CLASS_FIGURES
    }


def _facts(run: EvaluationRun) -> tuple[list[str], str | None]:
    found: dict[str, Any] = (run.metrics or {}).get("classification") or {}
    return list(found.get("labels", [])), found.get("positive_label")


def _ratios(predicted: Labels, true: Labels, place: int) -> dict[str, tuple[Numbers, Numbers]]:
    said, is_so = (predicted == place).astype(float), (true == place).astype(float)
    hit = said * is_so
    return {"precision": (hit, said), "recall": (hit, is_so), "f1": (2 * hit, said + is_so)}
