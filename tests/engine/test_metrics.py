"""Scores: worked examples, SQuAD's arithmetic, and figures over evaluated rows only."""

import doctest
import importlib
import json
from pkgutil import iter_modules

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine import metrics
from ftproject.engine.metrics import SKIPPED, SampleScore, aggregate, exact_match, score_sample, token_scores


def test_the_examples_in_the_docstrings_are_true() -> None:
    modules = [importlib.import_module(f"{metrics.__name__}.{found.name}") for found in iter_modules(metrics.__path__)]
    results = [doctest.testmod(module) for module in modules]
    assert sum(result.failed for result in results) == 0
    assert sum(result.attempted for result in results) > 40


@pytest.mark.parametrize(
    ("prediction", "truth", "equal"),
    [
        ("7", " 7\n", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("a\u00a0b", "a b", True),
        ("Yes", "yes", False),
        ("yes.", "yes", False),
        ("", " ", True),
        ("007", "7", False),
    ],
)
def test_exact_match_forgives_unicode_form_and_whitespace_only(prediction: str, truth: str, equal: bool) -> None:
    assert exact_match(prediction, truth) is equal


@pytest.mark.parametrize(
    ("prediction", "truth", "precision", "recall", "f1"),
    [
        ("", "", 1, 1, 1),
        ("...", "", 1, 1, 1),
        ("", "a", 0, 0, 0),
        ("a", "", 0, 0, 0),
        ("A, b!", "a b", 1, 1, 1),
        ("a a b", "a b b", 2 / 3, 2 / 3, 2 / 3),
        ("a b c d", "a", 1 / 4, 1, 2 / 5),
        ("don't stop", "dont stop", 1 / 2, 1 / 2, 1 / 2),
        ("STRASSE", "straße", 1, 1, 1),
    ],
)
def test_token_scores_count_the_overlap_of_tokens(
    prediction: str, truth: str, precision: float, recall: float, f1: float
) -> None:
    scores = token_scores(prediction, truth)
    assert (scores.precision, scores.recall, scores.f1) == pytest.approx((precision, recall, f1))


@given(st.text(max_size=40), st.text(max_size=40))
def test_scores_stay_between_nought_and_one_and_are_one_for_equal_texts(one: str, other: str) -> None:
    scores, back = token_scores(one, other), token_scores(other, one)
    for value in (scores.precision, scores.recall, scores.f1):
        assert 0 <= value <= 1
    assert (scores.precision, scores.recall, scores.f1) == (back.recall, back.precision, back.f1)
    assert token_scores(one, one).f1 == 1
    assert exact_match(one, one)


def test_skipped_rows_count_as_samples_but_never_in_a_mean() -> None:
    rows = [score_sample("7", "7")] * 70 + [score_sample("1", "7")] * 25 + [SKIPPED] * 5
    figures = aggregate(rows)
    assert figures["num_samples"] == 100
    assert figures["num_skipped"] == 5
    assert figures["exact_match_accuracy"] == pytest.approx(0.7368, abs=5e-5)


@pytest.mark.parametrize("rows", [[], [SKIPPED]])
def test_a_run_without_an_evaluated_row_has_no_figures(rows: list[SampleScore]) -> None:
    figures = aggregate(rows)
    assert figures["num_samples"] == len(rows)
    assert figures["exact_match_accuracy"] is None
    assert figures["token_f1"] is None


def test_no_figure_is_ever_nan() -> None:
    figures = aggregate([score_sample("", ""), score_sample("a", "")])
    json.dumps(figures, allow_nan=False)
