"""Classification figures: scikit-learn's own, with answers that are no label counted as wrong."""

import doctest
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine import classification
from ftproject.engine.classification import Averages, ConfusionCounts, classify, known_labels, parse_label


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(classification).failed == 0


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("yes", "yes"),
        ("TRUE", "yes"),
        (" 1. ", "yes"),
        ("No, there is none.", "no"),
        ("false\nbecause", "no"),
        ("yes and no", None),
        ("1.5", None),
        ("", None),
        ("nope", None),
    ],
)
def test_yes_and_no_are_read_in_every_usual_spelling(text: str, label: str | None) -> None:
    assert parse_label(text, ["no", "yes"]) == label


def test_the_labels_are_those_of_the_ground_truth() -> None:
    assert known_labels(["Cat", "dog. ", "CAT", ""]) == ["cat", "dog"]
    assert known_labels(["true", "0"]) == ["no", "yes"]
    assert known_labels(["1", "2", "0"]) == ["0", "1", "2"]
    assert known_labels([]) == []


def test_an_answer_that_is_no_label_is_wrong_and_reported() -> None:
    figures = classify(["yes", "maybe", "no", "maybe"], ["yes", "yes", "no", "no"])
    assert figures.unparsed == 2
    assert figures.unparsed_by_label == [1, 1]
    assert figures.accuracy == 0.5
    assert (figures.precision, figures.recall, figures.f1) == pytest.approx((1.0, 0.5, 2 / 3))
    assert figures.confusion_matrix == [[1, 0], [0, 1]]


def test_the_positive_label_can_be_chosen() -> None:
    predictions, truths = ["cat", "cat", "dog"], ["cat", "dog", "dog"]
    assert classify(predictions, truths).positive_label == "dog"
    chosen = classify(predictions, truths, positive_label="CAT")
    assert chosen.positive_label == "cat"
    assert chosen.precision == 0.5
    assert classify(["1"], ["yes"], positive_label="true").positive_label == "yes"
    with pytest.raises(ValueError, match="none of the labels cat, dog"):
        classify(predictions, truths, positive_label="bird")


def test_more_than_two_labels_give_a_report_per_class_and_a_square_matrix() -> None:
    figures = classify(["a", "b", "c", "c"], ["a", "b", "b", "c"])
    assert figures.positive_label is None
    assert figures.confusion_matrix == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    assert [scores.support for scores in figures.per_class] == [1, 2, 1]
    assert figures.precision == pytest.approx((1 + 1 + 0.5) / 3)


def test_rows_without_a_ground_truth_are_left_out_and_counted() -> None:
    figures = classify(["yes", "no"], ["yes", " "])
    assert figures.unlabelled == 1
    assert figures.accuracy == 1.0


def test_nothing_to_count_gives_nulls_not_nan() -> None:
    assert classify([], []).accuracy is None
    only_negative = classify(["no"], ["no"])
    assert only_negative.precision is None
    assert only_negative.recall is None
    json.dumps(only_negative.to_dict(), allow_nan=False)


def test_rows_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        classify(["a"], [])


def test_streamed_counts_are_those_of_the_lists_and_reject_what_is_no_label() -> None:
    counts = ConfusionCounts(["a", "b", "c"])
    for true, predicted in [("a", "a"), ("b", None), ("b", "elsewhere"), (None, "a"), ("c", "b")]:
        counts.add(true, predicted)
    figures = counts.figures()
    assert figures.confusion_matrix == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert (figures.unparsed_by_label, figures.unlabelled, figures.accuracy) == ([0, 2, 0], 1, 0.25)
    assert figures.per_class[1].recall == 0.0
    json.dumps(figures.to_dict(), allow_nan=False)


def test_a_label_without_rows_has_nulls_and_is_left_out_of_the_means() -> None:
    counts = ConfusionCounts(["a", "b", "c"])
    counts.add("a", "a")
    counts.add("b", "b")
    figures = counts.figures()
    assert (figures.per_class[2].precision, figures.per_class[2].support) == (None, 0)
    assert figures.macro_avg == Averages(1.0, 1.0, 1.0)


def test_counting_takes_memory_by_labels_not_rows() -> None:
    counts = ConfusionCounts(["a", "b"])
    for number in range(50_000):
        counts.add("ab"[number % 2], "ab"[number % 3 % 2])
    assert len(counts.counts) == 4
    assert sum(scores.support for scores in counts.figures().per_class) == 50_000


pairs = st.lists(st.tuples(st.sampled_from("abcx"), st.sampled_from("abc")), min_size=1, max_size=30)


@given(pairs)
def test_the_figures_are_scikit_learns(rows: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, classification_report

    predictions, truths = [row[0] for row in rows], [row[1] for row in rows]
    figures = classify(predictions, truths)
    report = classification_report(truths, predictions, labels=figures.labels, output_dict=True, zero_division=math.nan)
    assert figures.accuracy == pytest.approx(accuracy_score(truths, predictions))
    for scores in figures.per_class:
        expected = report[scores.label]
        assert scores.support == expected["support"]
        for name in ("precision", "recall"):
            value = getattr(scores, name)
            assert value == pytest.approx(expected["f1-score" if name == "f1" else name], nan_ok=True) or (
                value is None and math.isnan(expected[name])
            )
    for name, averages in (("macro avg", figures.macro_avg), ("weighted avg", figures.weighted_avg)):
        for key, value in (("precision", averages.precision), ("recall", averages.recall), ("f1-score", averages.f1)):
            assert math.nan if value is None else value == pytest.approx(report[name][key], nan_ok=True)
    for line, label, unparsed in zip(figures.confusion_matrix, figures.labels, figures.unparsed_by_label, strict=True):
        assert sum(line) + unparsed == truths.count(label)
