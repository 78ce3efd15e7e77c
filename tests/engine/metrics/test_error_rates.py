"""cer and wer: jiwer's and torchmetrics' figures, the definition's, and what happens without a reference."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ftproject.engine.metrics import character_error_rate, edit_distance, normalised_text, word_error_rate
from ftproject.engine.metrics.base import TextPair
from ftproject.engine.metrics.error_rates import CharacterErrorRate, ErrorRate, WordErrorRate
from tests.engine.metrics.oracles import levenshtein, texts

PAIRS = st.lists(st.tuples(texts, texts), min_size=1, max_size=8)


def corpus_rate(metric: ErrorRate, pairs: list[tuple[str, str]]) -> float | None:
    totals = metric.totals()
    for prediction, truth in pairs:
        score = metric.score(TextPair(prediction, truth))
        totals.add(score.value, score.details)
    return totals.value()


@given(texts, texts)
def test_the_distance_is_wagners_and_fischers(one: str, other: str) -> None:
    assert edit_distance(one, other) == levenshtein(one, other)
    assert edit_distance(one.split(), other.split()) == levenshtein(one.split(), other.split())


@given(texts, texts)
def test_both_rates_are_jiwers(prediction: str, truth: str) -> None:
    import jiwer

    prediction, truth = normalised_text(prediction), normalised_text(truth)
    assume(truth)
    assert character_error_rate(prediction, truth) == pytest.approx(jiwer.cer(truth, prediction))
    assert word_error_rate(prediction, truth) == pytest.approx(jiwer.wer(truth, prediction))


@settings(max_examples=30)
@given(PAIRS)
def test_the_rate_of_a_run_is_jiwers_and_torchmetrics_over_the_corpus(pairs: list[tuple[str, str]]) -> None:
    import jiwer
    from torchmetrics.functional.text import char_error_rate, word_error_rate

    pairs = [(normalised_text(prediction), normalised_text(truth)) for prediction, truth in pairs]
    predictions, truths = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assume(any(truths))
    cer, wer = corpus_rate(CharacterErrorRate(), pairs), corpus_rate(WordErrorRate(), pairs)
    assert cer == pytest.approx(jiwer.cer(truths, predictions))
    assert wer == pytest.approx(jiwer.wer(truths, predictions))
    assert cer == pytest.approx(float(char_error_rate(predictions, truths)))
    assert wer == pytest.approx(float(word_error_rate(predictions, truths)))


@pytest.mark.parametrize(
    ("prediction", "truth", "cer", "wer"),
    [
        ("", "", 0.0, 0.0),
        (" \n", "", 0.0, 0.0),
        ("a", "", None, None),
        ("", "ab", 1.0, 1.0),
        ("cafe\u0301", "caf\u00e9", 0.0, 0.0),
        ("a  b", "a b", 0.0, 0.0),
        ("AB", "ab", 1.0, 1.0),
        ("x" * 30, "a b", 10.0, 1.0),
    ],
)
def test_empty_texts_unicode_and_whitespace(prediction: str, truth: str, cer: float | None, wer: float | None) -> None:
    assert character_error_rate(prediction, truth) == cer
    assert word_error_rate(prediction, truth) == wer


def test_a_run_weighs_rows_by_the_length_of_their_ground_truth() -> None:
    pairs = [("abcdefghij", "abcdefghij"), ("x", "y")]
    assert corpus_rate(CharacterErrorRate(), pairs) == pytest.approx(1 / 11)


def test_an_answer_where_none_was_wanted_counts_its_insertions() -> None:
    totals = CharacterErrorRate().totals()
    for prediction, truth in [("abc", ""), ("ab", "ab")]:
        score = CharacterErrorRate().score(TextPair(prediction, truth))
        totals.add(score.value, score.details)
    assert totals.value() == pytest.approx(3 / 2)
    assert totals.details() == {"undefined": 1}


@pytest.mark.parametrize("pairs", [[], [("", "")], [("a", "")]])
def test_without_any_reference_the_rate_of_a_run_is_null(pairs: list[tuple[str, str]]) -> None:
    assert corpus_rate(WordErrorRate(), pairs) is None


def test_lower_is_better() -> None:
    assert not CharacterErrorRate.higher_is_better
    assert not WordErrorRate.higher_is_better
