"""Calibration figures: the definition's, scikit-learn's AUROC, and null where there is nothing to judge."""

from __future__ import annotations

import doctest
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine import calibration
from ftproject.engine.calibration import BINS, Calibration

rows = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


def filled(pairs: list[tuple[float, bool]]) -> Calibration:
    found = Calibration()
    for confidence, correct in pairs:
        found.add(confidence, correct=correct)
    return found


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(calibration).failed == 0


@given(rows)
def test_the_error_is_guos_over_ten_bins(pairs: list[tuple[float, bool]]) -> None:
    """Guo et al. 2017, equation 5: the bins' gaps between accuracy and confidence, weighted by their size."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for confidence, correct in pairs:
        bins.setdefault(min(int(confidence * BINS), BINS - 1), []).append((confidence, correct))
    expected = sum(
        len(part) / len(pairs) * abs(sum(c for _, c in part) / len(part) - sum(p for p, _ in part) / len(part))
        for part in bins.values()
    )
    figures = filled(pairs).figures()
    assert figures["expected_calibration_error"] == pytest.approx(expected)
    assert sum(part["count"] for part in figures["bins"]) == figures["rows"] == len(pairs)


@given(rows)
def test_auroc_is_scikit_learns(pairs: list[tuple[float, bool]]) -> None:
    from sklearn.metrics import roc_auc_score

    found = Calibration()
    for probability, positive in pairs:
        found.add_binary(probability, positive=positive)
    auroc = found.figures()["auroc"]
    if len({positive for _, positive in pairs}) < 2:
        assert auroc is None
    else:
        assert auroc == pytest.approx(roc_auc_score([p for _, p in pairs], [p for p, _ in pairs]))


def test_certainty_is_in_the_last_bin() -> None:
    figures = filled([(1.0, True), (0.0, False)]).figures()
    assert [part["from"] for part in figures["bins"]] == [0.0, 0.9]
    assert figures["expected_calibration_error"] == 0.0


def test_rows_without_a_confidence_are_counted_only() -> None:
    found = Calibration()
    found.add(None, correct=False)
    figures = found.figures()
    assert (figures["rows"], figures["without_confidence"]) == (0, 1)
    assert figures["expected_calibration_error"] is figures["accuracy"] is figures["auroc"] is None
    json.dumps(figures, allow_nan=False)
