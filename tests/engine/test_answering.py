"""Chats that come together: each answered as alone, each with its own fate, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ftproject.engine.adapters import AdapterError
from ftproject.engine.answering import ChatAnswer, ChatRequest, answer_chats
from ftproject.engine.backends.base import RowError
from ftproject.engine.chats import Chat, ChatTurn, chat_of_row
from ftproject.engine.configs import GenerationParams
from ftproject.engine.decoding import DecodedRow, DecodingRequest
from ftproject.engine.encoding import EncodedRow
from ftproject.engine.resident import ResidentModel
from tests.engine.conftest import TrainedAdapter

GREEDY = GenerationParams(max_new_tokens=8, do_sample=False)


def ask(text: str, adapter: Path | None = None, decoding: DecodingRequest | None = None) -> ChatRequest:
    return ChatRequest(Chat((ChatTurn("user", (text,)),)), decoding or DecodingRequest(GREEDY), adapter)


def encode(request: ChatRequest) -> EncodedRow:
    text = str(request.chat.turns[0].parts[0])
    if text == "unreadable":
        raise RowError("image_missing", "the image file does not exist")
    if text == "half a surrogate":
        raise TypeError("TextInputSequence must be str")
    return EncodedRow(index=0, input_ids=[ord(letter) for letter in text], labels=[], image_paths=())


class Device:
    """Decodes to the reversed prompt, `fits` rows at a time."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.batches: list[list[str]] = []

    def __call__(
        self, rows: Sequence[EncodedRow], requests: Sequence[DecodingRequest], adapter: Path | None
    ) -> list[DecodedRow]:
        texts = ["".join(map(chr, row.input_ids)) for row in rows]
        self.batches.append(texts)
        for text, request in zip(texts, requests, strict=True):
            if request.on_text:
                request.on_text(text[:3])
        if len(rows) > self.fits:
            raise MemoryError
        for text, request in zip(texts, requests, strict=True):
            if request.on_text:
                request.on_text(text[3:])
        ended = [DecodedRow(text=text, ids=(1, 2), finish_reason="stop") for text in texts]
        for request, row in zip(requests, ended, strict=True):
            if request.on_end:
                request.on_end(row)
        return ended


def test_answers_come_in_the_order_of_the_questions_whatever_their_adapters() -> None:
    first, second = Path("a"), Path("b")
    device = Device(fits=9)
    asked = [ask("one", first), ask("two"), ask("three", second), ask("four", first)]
    assert [item.text for item in answer_chats(asked, encode, device)] == ["one", "two", "three", "four"]
    assert device.batches == [["one", "four"], ["two"], ["three"]]


def test_a_chat_that_cannot_be_read_spoils_no_other() -> None:
    answers = answer_chats([ask("one"), ask("unreadable"), ask("two")], encode, Device(fits=9))
    assert [item.text for item in answers] == ["one", "", "two"]
    assert isinstance(answers[1].error, RowError)


def test_an_unforeseen_failure_with_one_chat_spoils_no_other() -> None:
    answers = answer_chats([ask("one"), ask("half a surrogate"), ask("two")], encode, Device(fits=9))
    assert [item.text for item in answers] == ["one", "", "two"]
    assert isinstance(answers[1].error, TypeError)


def test_every_answer_is_told_once_it_is_known() -> None:
    told: list[ChatAnswer] = []
    asked = [replace(ask(text), on_answer=told.append) for text in ("one", "unreadable", "two")]
    answers = answer_chats(asked, encode, Device(fits=9))
    assert told == [answers[1], answers[0], answers[2]]
    assert (told[1].text, told[1].prompt_tokens, told[1].completion_tokens) == ("one", 3, 2)


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    device = Device(fits=1)
    answers = answer_chats([ask("one"), ask("two"), ask("three")], encode, device)
    assert [item.text for item in answers] == ["one", "two", "three"]
    assert [len(batch) for batch in device.batches] == [3, 2, 1, 1, 1]


def test_what_a_reader_has_got_is_not_sent_again_after_a_lack_of_memory() -> None:
    got: list[list[str]] = [[] for _ in range(4)]
    asked = [ask(f"answer {place}", decoding=DecodingRequest(GREEDY, on_text=got[place].append)) for place in range(4)]
    answers = answer_chats(asked, encode, Device(fits=1))
    assert ["".join(pieces) for pieces in got] == [item.text for item in answers]


def test_one_that_does_not_fit_alone_says_so() -> None:
    answers = answer_chats([ask("one"), ask("two")], encode, Device(fits=0))
    assert [getattr(item.error, "code", None) for item in answers] == ["out_of_memory", "out_of_memory"]


def test_a_fault_of_ours_is_not_taken_for_a_lack_of_memory() -> None:
    def broken(*_: object) -> list[DecodedRow]:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        answer_chats([ask("one"), ask("two")], encode, broken)


def test_base_and_adapter_asked_together_answer_as_apart(resident: ResidentModel, trained: TrainedAdapter) -> None:
    rows = trained.rows[:6]
    asked = [
        ChatRequest(chat_of_row(row), DecodingRequest(GREEDY), adapter) for row in rows for adapter in both(trained)
    ]
    together = resident.answer(asked)
    for adapter in both(trained):
        apart = [item.text for item in resident.generate(rows, GREEDY, adapter=adapter)]
        mixed = [item.text for item, request in zip(together, asked, strict=True) if request.adapter == adapter]
        assert mixed == apart
    assert all(0 < item.prefill_ms <= item.generation_ms for item in together)
    assert all(item.prompt_tokens > item.completion_tokens > 0 for item in together)


def both(trained: TrainedAdapter) -> list[Path | None]:
    return [None, trained.path]


def test_an_adapter_that_is_gone_fails_its_own_requests_only(resident: ResidentModel, tmp_path: Path) -> None:
    base, gone = resident.answer([ask("Describe the image."), ask("Describe the image.", tmp_path / "gone")])
    assert base.error is None
    assert isinstance(gone.error, AdapterError)


def test_a_prompt_beyond_the_models_length_fails_alone(resident: ResidentModel) -> None:
    short, long = resident.answer([ask("Describe the image."), ask("what is it? " * 50_000)])
    assert short.error is None
    assert isinstance(long.error, RowError)
    assert long.error.code == "prompt_too_long"
