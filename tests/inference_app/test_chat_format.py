"""Our settings and conversations in OpenAI's format."""

from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.configs import GenerationParams
from ftproject.engine.remote import openai_settings
from inference_app.chat_format import ChatFormatError, openai_messages, read_answer

ANSWER: dict[str, Any] = {
    "choices": [{"message": {"content": "7"}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    "timings": {"generation_ms": 12.345, "prefill_ms": 2.0},
}


def test_images_come_before_the_text_as_in_training() -> None:
    (message,) = openai_messages("what is it?", [Path("/cache/a b.png"), Path("/cache/c")])
    assert message["role"] == "user"
    assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
    assert message["content"][0]["image_url"] == {"url": "file:///cache/a%20b.png"}
    assert message["content"][2]["text"] == "what is it?"


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|im_start|>"])
def test_special_tokens_of_a_prompt_stay_text(token: str) -> None:
    (message,) = openai_messages(f"a{token}b", [])
    assert token not in message["content"][0]["text"]


def test_greedy_is_temperature_zero_and_no_sampling_field_is_sent() -> None:
    params = GenerationParams(do_sample=False, temperature=0.7, top_p=0.5, seed=3, max_new_tokens=9)
    assert openai_settings(params) == {"max_tokens": 9, "temperature": 0.0}
    assert openai_settings(GenerationParams(temperature=0.0))["temperature"] == 0.0


def test_sampling_fields_keep_their_values() -> None:
    params = GenerationParams(temperature=0.7, top_p=0.5, min_p=0.1, seed=3, max_new_tokens=9)
    expected = {"max_tokens": 9, "temperature": 0.7, "top_p": 0.5, "min_p": 0.1}
    assert openai_settings(params) == {**expected, "seed": 3}
    assert "seed" not in openai_settings(GenerationParams())


def test_an_answer_is_read() -> None:
    answer = read_answer(ANSWER)
    assert (answer.text, answer.generation_ms, answer.finish_reason) == ("7", 12.3, "length")
    assert (answer.prompt_tokens, answer.completion_tokens) == (9, 2)


@pytest.mark.parametrize("missing", sorted(ANSWER))
def test_an_answer_with_a_part_missing_is_refused(missing: str) -> None:
    with pytest.raises(ChatFormatError):
        read_answer({name: part for name, part in ANSWER.items() if name != missing})


@pytest.mark.parametrize("body", [{}, {**ANSWER, "choices": []}, {**ANSWER, "choices": None}, {**ANSWER, "usage": 3}])
def test_an_answer_of_another_shape_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ChatFormatError):
        read_answer(body)
