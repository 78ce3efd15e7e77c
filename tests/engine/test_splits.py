"""Held-out rows: by hash, the same everywhere, images never on both sides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine.conversations import Conversation
from ftproject.engine.hyperparameters import TrainingOptions
from ftproject.engine.splits import (
    answer_digest,
    decode_ranges,
    encode_ranges,
    holdout_split,
    row_group_key,
    row_group_keys,
    split_conversations,
)


def conversation(*images: str, prompt: str = "p", index: int = 0) -> Conversation:
    return Conversation(index, prompt, "r", "t", images)


def test_the_split_is_the_same_on_every_machine() -> None:
    groups = [f"row {number}" for number in range(20)]
    held = [number for number, out in enumerate(holdout_split(groups, 0.25, 7)) if out]
    assert held == [11, 13]


def test_another_seed_holds_out_other_rows_and_appended_rows_move_none() -> None:
    groups = [str(number) for number in range(200)]
    assert holdout_split(groups, 0.2, 1) != holdout_split(groups, 0.2, 2)
    assert holdout_split(groups, 0.2, 1)[:100] == holdout_split(groups[:100], 0.2, 1)
    assert 25 <= sum(holdout_split(groups, 0.2, 1)) <= 55


def test_no_fraction_holds_nothing_out() -> None:
    assert holdout_split(["a", "b"], 0, 0) == [False, False]
    assert holdout_split([], 0.5, 0) == []


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_a_fraction_that_leaves_nothing_to_train_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        holdout_split(["a"], fraction, 0)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1), st.floats(0.001, 0.999), st.integers(0, 99))
def test_both_sides_get_a_row_and_a_group_stays_together(groups: list[str], fraction: float, seed: int) -> None:
    held = holdout_split(groups, fraction, seed)
    sides: dict[str, bool] = {}
    for key, side in zip(groups, held, strict=True):
        assert sides.setdefault(key, side) == side
    if len(sides) >= 2:
        assert set(sides.values()) == {True, False}
    else:
        assert not any(held)


def test_rows_with_the_same_images_share_a_key_and_rows_without_go_by_prompt() -> None:
    assert row_group_key(conversation("a", "b", prompt="x")) == row_group_key(conversation("b", "a", prompt="y"))
    assert row_group_key(conversation("a")) != row_group_key(conversation("b"))
    assert row_group_key(conversation(prompt="x")) == row_group_key(conversation(prompt="x", index=9))
    assert row_group_key(conversation(prompt="x")) != row_group_key(conversation("x"))


def test_rows_that_share_one_image_through_others_stay_together() -> None:
    rows = [conversation("a", "b"), conversation("c"), conversation("b", "d"), conversation("d"), conversation()]
    keys = row_group_keys(rows)
    assert keys[0] == keys[2] == keys[3]
    assert len(set(keys)) == 3
    assert row_group_keys([conversation("d"), conversation("b", "a"), conversation("d", "b")])[0] == keys[0]


@given(st.sets(st.integers(0, 500)))
def test_ranges_say_exactly_the_set(numbers: set[int]) -> None:
    assert decode_ranges(encode_ranges(numbers)) == sorted(numbers)


def test_ranges_are_compact() -> None:
    assert encode_ranges([0, 1, 2, 5]) == "0-2,5"
    assert encode_ranges([]) == ""
    assert encode_ranges([5, 5, 4]) == "4-5"
    with pytest.raises(ValueError, match="negative"):
        encode_ranges([-1])


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "5,4", "1,,2", "1-2-3", "1, 2", "²"])
def test_text_that_encode_ranges_never_writes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="range"):
        decode_ranges(text)


def answered(answers: str) -> list[Conversation]:
    return [Conversation(index, "p", text, text, (f"{index}.png",)) for index, text in enumerate(answers)]


def test_a_stratified_split_holds_out_the_same_part_of_every_answer() -> None:
    rows = answered("y" * 100 + "n" * 20)
    held = split_conversations(rows, TrainingOptions(0.25, 3, holdout_stratify=True))
    assert (sum(held[:100]), sum(held[100:])) == (25, 5)
    other = split_conversations(rows, TrainingOptions(0.25, 4, holdout_stratify=True))
    assert held != other


def test_answers_that_differ_in_case_or_blanks_only_are_one_stratum() -> None:
    digests = {answer_digest(Conversation(0, "p", text, text, ())) for text in ("Yes", "yes ", " YES\n")}
    assert len(digests) == 1


def test_rare_answers_share_a_stratum_so_that_free_text_is_split_too() -> None:
    rows = [Conversation(index, "p", f"text {index}", f"text {index}", (f"{index}.png",)) for index in range(40)]
    held = split_conversations(rows, TrainingOptions(0.25, 0, holdout_stratify=True))
    assert sum(held) == 10


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("yno")), min_size=1, max_size=60),
    st.floats(0.001, 0.999),
    st.integers(0, 99),
)
def test_a_stratified_split_keeps_groups_together_and_both_sides_filled(
    rows: list[tuple[str, str]], fraction: float, seed: int
) -> None:
    groups = [group for group, _ in rows]
    held = holdout_split(groups, fraction, seed, [ord(answer) for _, answer in rows])
    sides: dict[str, bool] = {}
    for key, side in zip(groups, held, strict=True):
        assert sides.setdefault(key, side) == side
    assert set(sides.values()) == ({True, False} if len(sides) > 1 else {False})
