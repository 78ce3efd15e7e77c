"""A row becomes a conversation: verbatim texts, images in order, reasons to skip, and text that stays text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine.conversations import (
    Conversation,
    RowMapping,
    build_conversation,
    messages_of,
    neutralise_special_tokens,
    split_image_cell,
)

ROW = {"q": "Which digit?", "a": " 7\n", "truth": "seven", "left": "l.png", "right": "r.png|s.png", "id": "x"}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "<|video_pad|>"]


def test_texts_are_verbatim_and_images_follow_the_order_of_columns_and_cells() -> None:
    mapping = RowMapping("q", "a", "truth", ("right", "left"), "|")
    conversation = build_conversation(4, ROW, mapping)
    assert conversation == Conversation(4, "Which digit?", " 7\n", "seven", ("r.png", "s.png", "l.png"), num_images=3)


def test_without_a_ground_truth_column_the_response_is_the_truth() -> None:
    assert build_conversation(0, ROW, RowMapping("q", "a")).ground_truth == " 7\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"left": "  "}, "mandatory column 'left' empty"),
        ({"left": "", "id": "\n"}, "mandatory columns 'left', 'id' empty"),
        ({"q": " "}, None),
        ({"q": " ", "left": "l.png", "right": ""}, None),
    ],
)
def test_a_blank_mandatory_cell_skips_the_row_with_its_reason(change: dict[str, str], reason: str | None) -> None:
    mapping = RowMapping("q", "a", None, ("left", "right"), None, ("left", "id"))
    conversation = build_conversation(0, ROW | change, mapping)
    assert (conversation.skipped, conversation.skipped_reason) == (reason is not None, reason)


def test_a_row_with_nothing_to_ask_is_skipped() -> None:
    conversation = build_conversation(0, ROW | {"q": " "}, RowMapping("q", "a"))
    assert conversation.skipped_reason == "neither a prompt nor an image"


def test_a_mapping_to_a_column_that_is_not_there_fails_loudly() -> None:
    with pytest.raises(KeyError):
        build_conversation(0, ROW, RowMapping("question", "a"))


@pytest.mark.parametrize(
    ("cell", "separator", "images"),
    [
        ("", "|", []),
        (" a.png ", None, ["a.png"]),
        ("a,b", None, ["a,b"]),
        ("a.png, b.png,,", ",", ["a.png", "b.png"]),
        ("a;;b", ";;", ["a", "b"]),
        ("data:image/png;base64,AAAA,http://x/y.png", ",", ["data:image/png;base64,AAAA", "http://x/y.png"]),
        (
            "data:image/png;base64,AA;data:image/gif;base64,BB",
            ";",
            ["data:image/png;base64,AA", "data:image/gif;base64,BB"],
        ),
    ],
)
def test_a_separator_splits_a_cell_but_never_the_head_of_a_data_uri(
    cell: str, separator: str | None, images: list[str]
) -> None:
    assert split_image_cell(cell, separator) == images


def test_messages_put_the_images_first_and_the_answer_last() -> None:
    conversation = Conversation(0, "p", "r", "t", ("i.png", "j.png"))
    assert messages_of(conversation, with_response=True) == [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "i.png"},
                {"type": "image", "image": "j.png"},
                {"type": "text", "text": "p"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "r"}]},
    ]
    assert len(messages_of(conversation, with_response=False)) == 1


def test_special_tokens_in_prompt_and_response_become_readable_text() -> None:
    messages = messages_of(Conversation(0, "a<|im_end|>b", "<|image_pad|>", ""), with_response=True)
    assert messages[0]["content"][-1]["text"] == "a< |im_end|>b"
    assert messages[1]["content"][0]["text"] == "< |image_pad|>"


@pytest.mark.parametrize("text", ["a < b | c > d", "<||>", "<| x |>", "<b>|</b>", "x<|", "|>"])
def test_text_that_is_no_token_stays_as_it_is(text: str) -> None:
    assert neutralise_special_tokens(text) == text


planted = st.lists(st.one_of(st.sampled_from([*SPECIAL, "<|", "|>", "<", "|", ">"]), st.text(max_size=4))).map("".join)


@given(planted)
def test_no_special_token_survives_and_doing_it_twice_changes_nothing(text: str) -> None:
    once = neutralise_special_tokens(text)
    assert not any(token in once for token in SPECIAL)
    assert neutralise_special_tokens(once) == once
    assert re.sub(r"< (?=\|)", "<", once) == re.sub(r"< (?=\|)", "<", text)
