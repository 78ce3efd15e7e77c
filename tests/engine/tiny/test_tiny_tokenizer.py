"""The tiny tokenizer and chat template: Qwen's special tokens, compact demo text, and no text lost."""

import unicodedata
from typing import Any

import jinja2
import pytest
from transformers import AutoTokenizer

from ftproject.engine.tiny.tokenizer import SPECIAL_TOKENS, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


@pytest.fixture(scope="module")
def loaded(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


NASTY_TEXTS = [
    "Which digit is shown in the image?",
    "  leading, trailing  \n\n\ttabs\r\n",
    "Ünïcödé — “quotes” … ¿qué? Straße",
    "日本語のテキスト, العربية, हिन्दी, 한국어",
    "🎉👩‍👩‍👧‍👦 zero\u200bwidth \ufeffBOM",
    "007 1.0 -3e5 NaN",
    "\x00\x01 control",
    "",
]


@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_nfc_text_comes_back_byte_for_byte(tokenizer: Any, loaded: Any, text: str) -> None:
    text = unicodedata.normalize("NFC", text)

    for each in (tokenizer, loaded):
        assert each.decode(each(text)["input_ids"]).encode() == text.encode()


def test_a_decomposed_accent_comes_back_composed_as_with_qwen(tokenizer: Any, loaded: Any) -> None:
    for each in (tokenizer, loaded):
        assert each.decode(each("cafe\u0301")["input_ids"]) == "caf\u00e9"


@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_the_loaded_tokenizer_encodes_as_the_trained_one(tokenizer: Any, loaded: Any, text: str) -> None:
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("word", ["system", "user", "assistant"])
def test_a_role_is_one_token(tokenizer: Any, word: str) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer(f"<|im_start|>{word}\n")["input_ids"]) == [
        "<|im_start|>",
        word,
        "Ċ",
    ]


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_special_token_is_one_id_and_disappears_on_request(tokenizer: Any, token: str) -> None:
    ids = tokenizer(token)["input_ids"]

    assert ids == [SPECIAL_TOKENS.index(token)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_every_digit_is_a_token_of_its_own(tokenizer: Any) -> None:
    assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]


@pytest.mark.parametrize(
    "text",
    [
        "Which digit is shown in the image?",
        "Describe the image.",
        "I see the red circle to the left of the blue square",
        "I see the yellow star on top of the purple diamond",
        "How many crosses are there?",
    ],
)
def test_demo_text_takes_one_token_a_word(tokenizer: Any, text: str) -> None:
    punctuation = sum(text.count(mark) for mark in "?.")

    assert len(tokenizer(text)["input_ids"]) == len(text.split()) + punctuation


def test_training_twice_gives_the_same_vocabulary(tokenizer: Any) -> None:
    assert train_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_conversation_is_rendered_turn_by_turn(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "What is "},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                {"type": "text", "text": "this?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A star."}]},
        {"role": "user", "content": "Sure?"},
    ]

    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is "
        "<|vision_start|><|image_pad|><|vision_end|>this?<|im_end|>\n"
        "<|im_start|>assistant\nA star.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_prompt_and_its_completion_render_as_the_whole_conversation_does(tokenizer: Any) -> None:
    prompt = [{"role": "user", "content": "Describe the image."}]
    answer = [{"role": "assistant", "content": "a red star"}]
    whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)

    assert whole == f"{start}a red star<|im_end|>\n"


def test_a_text_part_that_carries_an_empty_image_key_stays_text(tokenizer: Any) -> None:
    # Arrow gives every part of a list the same keys, so text parts arrive with image=None.
    part = {"type": "text", "text": "hello", "image": None}

    assert tokenizer.apply_chat_template([{"role": "user", "content": [part]}], tokenize=False) == (
        "<|im_start|>user\nhello<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"role": "critic", "content": "no"}, "Unknown role: critic"),
        ({"role": "user", "content": [{"type": "audio"}]}, "Unknown content type: audio"),
    ],
)
def test_what_the_template_cannot_render_is_refused(tokenizer: Any, message: dict[str, Any], complaint: str) -> None:
    with pytest.raises(jinja2.TemplateError, match=complaint):
        tokenizer.apply_chat_template([message], tokenize=False)
