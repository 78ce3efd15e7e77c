"""Labels in free text: what is read, what is left unparsed, and bounds."""

from __future__ import annotations

import doctest
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine import labels
from ftproject.engine.labels import MOST_LABELS, TooManyLabelsError, known_labels, label_of, parse_label

YES_NO = ["no", "yes"]
PETS = ["cat", "dog", "hot dog"]
DIGITS = [str(digit) for digit in range(10)]
LETTERS = ["a", "b", "c"]


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(labels).failed == 0


@pytest.mark.parametrize(
    ("text", "among", "label"),
    [
        ("The answer is yes.", YES_NO, "yes"),
        ("That statement is false", YES_NO, "no"),
        ("There is no circle", YES_NO, "no"),
        ("It is a dog!", PETS, "dog"),
        ("I see a HOT  DOG here", PETS, "hot dog"),
        ("A dog, clearly a dog", PETS, "dog"),
        ("**Cat**", PETS, "cat"),
        ("The digit shown is 7.", DIGITS, "7"),
        ("b)", LETTERS, "b"),
        ("B. because it is blue", LETTERS, "b"),
        ("это кошка", ["кошка", "собака"], "кошка"),
    ],
)
def test_the_only_label_of_an_answer_is_read(text: str, among: list[str], label: str) -> None:
    assert parse_label(text, among) == label


@pytest.mark.parametrize(
    ("text", "among"),
    [
        ("yes or no", YES_NO),
        ("It is not true", YES_NO),
        ("nobody knows", YES_NO),
        ("I see 1 circle", YES_NO),
        ("no-one", YES_NO),
        ("a cat and a dog", PETS),
        ("not a cat", PETS),
        ("It isn't a cat", PETS),
        ("It isn\N{RIGHT SINGLE QUOTATION MARK}t a cat", PETS),
        ("without a dog", PETS),
        ("doghouse", PETS),
        ("cat's", PETS),
        ("7.5", DIGITS),
        ("1,7", DIGITS),
        ("about 7%", DIGITS),
        ("17", DIGITS),
        ("-7 degrees", DIGITS),
        ("a picture of something", LETTERS),
        ("", PETS),
        ("?!", PETS),
        ("anything", []),
    ],
)
def test_an_answer_that_could_mean_two_things_is_no_label(text: str, among: list[str]) -> None:
    assert parse_label(text, among) is None


@given(st.lists(st.text(max_size=8), max_size=6))
def test_every_ground_truth_is_read_as_its_own_label(truths: list[str]) -> None:
    found = known_labels(truths)
    for truth in truths:
        assert (parse_label(truth, found) is None) == (label_of(truth) == "")


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=5), max_size=5))
def test_no_text_breaks_the_reader(text: str, truths: list[str]) -> None:
    among = known_labels(truths)
    assert parse_label(text, among) in (None, *among)


def test_more_labels_than_a_matrix_holds_are_refused_early() -> None:
    def endless() -> object:
        number = 0
        while True:
            yield f"text {number}"
            number += 1

    with pytest.raises(TooManyLabelsError, match=str(MOST_LABELS)):
        known_labels(endless())  # type: ignore[arg-type]
    assert len(known_labels(f"text {number}" for number in range(MOST_LABELS))) == MOST_LABELS


def test_a_long_answer_among_many_labels_is_read_at_once() -> None:
    among = known_labels(f"kind {number}" for number in range(MOST_LABELS))
    started = time.perf_counter()
    assert parse_label("word " * 8000 + "kind 17", among) == "kind 17"
    assert time.perf_counter() - started < 2
