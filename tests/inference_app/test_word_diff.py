"""Two answers compared word by word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_app.word_diff import MOST_WORDS, diff_words


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_parts_give_both_texts_back(base: str, finetuned: str) -> None:
    parts = diff_words(base, finetuned)
    assert parts is not None
    assert "".join(part.base for part in parts) == base
    assert "".join(part.finetuned for part in parts) == finetuned
    assert all((part.op == "equal") == (part.base == part.finetuned) for part in parts)


def test_words_and_punctuation_are_told_apart() -> None:
    parts = diff_words("a red, round ball", "a red round ball!")
    assert parts is not None
    assert [(part.op, part.base, part.finetuned) for part in parts] == [
        ("equal", "a red", "a red"),
        ("delete", ",", ""),
        ("equal", " round ball", " round ball"),
        ("insert", "", "!"),
    ]


@pytest.mark.timeout(15)  # 37 s with difflib, which is cubic here
def test_two_answers_in_a_loop_are_compared_as_fast_as_any() -> None:
    base, finetuned = "a b " * (MOST_WORDS // 4), "a a b b " * (MOST_WORDS // 8)
    parts = diff_words(base, finetuned)
    assert parts is not None
    assert "".join(part.finetuned for part in parts) == finetuned


def test_texts_too_long_to_compare_have_no_diff() -> None:
    assert diff_words("a " * MOST_WORDS, "b") is None
