"""Every row of a batch is answered as if it were alone: sampling, length, stop texts, stream and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ftproject.engine.configs import GenerationParams
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.decoding import (
    CancelledGenerationError,
    DecodedRow,
    DecodingRequest,
    RowProgress,
    decode_batch,
    first_stop,
    held_back,
)
from ftproject.engine.encoding import RowEncoder, build_batch
from ftproject.engine.pixel_cache import PixelCache
from ftproject.engine.resident import ResidentModel
from tests.engine.support import row

GREEDY = GenerationParams(max_new_tokens=12, do_sample=False)


def sampled(seed: int, **changes: Any) -> GenerationParams:
    return GenerationParams(max_new_tokens=12, do_sample=True, temperature=1.5, top_p=1.0, seed=seed, **changes)


@pytest.fixture
def rows(digit_rows: list[ResolvedConversation]) -> list[ResolvedConversation]:
    """Different lengths, with and without an image, so that a batch has padding."""
    return [
        row(0, prompt="Describe the image.", images=digit_rows[0].image_paths),
        row(1, prompt="Which colour has the circle? " * 6),
        row(2, prompt="How many squares are there?", images=[*digit_rows[1].image_paths, *digit_rows[2].image_paths]),
    ]


def decode(
    resident: ResidentModel, rows: Sequence[ResolvedConversation], requests: Sequence[DecodingRequest]
) -> list[DecodedRow]:
    encoder, processor = RowEncoder(resident.processor), resident.processor
    inputs = build_batch(
        [encoder.encode(item, with_response=False) for item in rows],
        PixelCache(processor),
        image_token_id=processor.image_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        padding_side="left",
        with_labels=False,
    )
    ends = {processor.tokenizer.eos_token_id}
    with resident._answering(None) as model:  # another test may have left an adapter active
        return decode_batch(model.generate, inputs, requests, tokenizer=processor.tokenizer, end_ids=ends)


def test_greedy_rows_in_a_batch_answer_as_alone(resident: ResidentModel, rows: list[ResolvedConversation]) -> None:
    together = decode(resident, rows, [DecodingRequest(GREEDY)] * 3)
    alone = [decode(resident, [item], [DecodingRequest(GREEDY)])[0] for item in rows]
    assert [item.ids for item in together] == [item.ids for item in alone]
    assert [item.text for item in together] == [item.text for item in alone]
    assert any(item.text for item in together)


def test_greedy_answers_are_those_of_the_evaluation(resident: ResidentModel, rows: list[ResolvedConversation]) -> None:
    evaluated = resident.generate(rows, GREEDY, adapter=None)
    decoded = decode(resident, rows, [DecodingRequest(GREEDY)] * 3)
    assert [item.text for item in decoded] == [item.text for item in evaluated]
    assert [item.finish_reason for item in decoded] == [item.finish_reason for item in evaluated]
    assert [len(item.ids) for item in decoded] == [item.completion_tokens for item in evaluated]


def test_a_sampled_row_draws_the_same_whatever_its_neighbours(
    resident: ResidentModel, rows: list[ResolvedConversation]
) -> None:
    wanted = DecodingRequest(sampled(7))
    alone = decode(resident, [rows[0]], [wanted])[0]
    mixed = decode(resident, rows, [wanted, DecodingRequest(GREEDY), DecodingRequest(sampled(8))])
    assert mixed[0].ids == alone.ids
    assert decode(resident, [rows[1]], [DecodingRequest(GREEDY)])[0].ids == mixed[1].ids


def test_another_seed_draws_another_answer(resident: ResidentModel, rows: list[ResolvedConversation]) -> None:
    drawn = decode(resident, [rows[0]] * 4, [DecodingRequest(sampled(seed)) for seed in (1, 2, 3, 4)])
    assert len({item.ids for item in drawn}) > 1


def test_a_top_p_near_zero_is_greedy(resident: ResidentModel, rows: list[ResolvedConversation]) -> None:
    params = GenerationParams(max_new_tokens=12, do_sample=True, temperature=1.0, top_p=1e-6, seed=3)
    assert (
        decode(resident, [rows[0]], [DecodingRequest(params)])[0].ids
        == decode(resident, [rows[0]], [DecodingRequest(GREEDY)])[0].ids
    )


def test_each_row_ends_at_its_own_length(resident: ResidentModel, rows: list[ResolvedConversation]) -> None:
    short = DecodingRequest(GenerationParams(max_new_tokens=1, do_sample=False))
    first, second, _ = decode(resident, rows, [short, DecodingRequest(GREEDY), DecodingRequest(GREEDY)])
    assert len(first.ids) == 1
    assert second.ids == decode(resident, [rows[1]], [DecodingRequest(GREEDY)])[0].ids


def test_a_row_is_told_when_it_ends_and_not_with_the_longest_of_its_batch(
    resident: ResidentModel, rows: list[ResolvedConversation]
) -> None:
    told: list[str] = []
    short = GenerationParams(max_new_tokens=1, do_sample=False)
    requests = [
        DecodingRequest(GREEDY, on_end=lambda done: told.append(f"long {done.text}")),
        DecodingRequest(short, on_end=lambda done: told.append(f"short {done.text} {done.finish_reason}")),
        DecodingRequest(GREEDY, on_end=lambda done: told.append(str(done.error)), is_cancelled=lambda: bool(told)),
    ]
    long, brief, _ = decode(resident, rows, requests)
    assert told[0] == f"short {brief.text} length"
    assert sorted(told[1:]) == sorted(["", f"long {long.text}"])


def test_the_pieces_of_a_stream_are_the_answer(resident: ResidentModel, rows: list[ResolvedConversation]) -> None:
    pieces: list[list[str]] = [[], [], []]
    requests = [DecodingRequest(sampled(seed), on_text=pieces[seed].append) for seed in range(3)]
    answers = decode(resident, rows, requests)
    assert ["".join(item) for item in pieces] == [answer.text for answer in answers]
    assert max(map(len, pieces)) > 1


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(
    resident: ResidentModel, rows: list[ResolvedConversation]
) -> None:
    whole = decode(resident, [rows[0]], [DecodingRequest(GREEDY)])[0].text
    assert len(whole) > 6
    pieces: list[str] = []
    cut = decode(resident, [rows[0]], [DecodingRequest(GREEDY, stop=(whole[3:6],), on_text=pieces.append)])[0]
    place = whole.find(whole[3:6])
    assert (cut.text, cut.finish_reason) == (whole[:place], "stop")
    assert "".join(pieces) == cut.text


def test_a_cancelled_row_ends_alone(resident: ResidentModel, rows: list[ResolvedConversation]) -> None:
    gone = DecodingRequest(GREEDY, is_cancelled=lambda: True)
    first, second, _ = decode(resident, rows, [gone, DecodingRequest(GREEDY), DecodingRequest(GREEDY)])
    assert isinstance(first.error, CancelledGenerationError)
    assert second.error is None
    assert second.text == decode(resident, [rows[1]], [DecodingRequest(GREEDY)])[0].text


def test_a_reader_that_fails_ends_its_own_row_only(resident: ResidentModel, rows: list[ResolvedConversation]) -> None:
    def broken(_: str) -> None:
        raise BrokenPipeError("the reader is gone")

    requests = [DecodingRequest(GREEDY, on_text=broken), DecodingRequest(GREEDY), DecodingRequest(GREEDY)]
    first, second, third = decode(resident, rows, requests)
    assert isinstance(first.error, BrokenPipeError)
    assert second.error is None
    assert third.error is None


def test_a_row_that_the_library_broke_off_has_no_answer(resident: ResidentModel) -> None:
    progress = RowProgress(DecodingRequest(GREEDY), resident.processor.tokenizer, {0})
    progress.push(200)
    assert progress.result().error is not None


@pytest.mark.parametrize(
    ("text", "stop", "place"),
    [("abc", (), None), ("abc", ("x",), None), ("abcabc", ("c", "b"), 1), ("abc", ("abc",), 0)],
)
def test_the_earliest_stop_text_counts(text: str, stop: tuple[str, ...], place: int | None) -> None:
    assert first_stop(text, stop) == place


@pytest.mark.parametrize(
    ("text", "stop", "held"),
    [("", ("end",), 0), ("the e", ("end",), 1), ("the en", ("end", "ennui"), 2), ("the", ("end",), 1), ("abc", (), 0)],
)
def test_what_may_begin_a_stop_text_is_held_back(text: str, stop: tuple[str, ...], held: int) -> None:
    assert held_back(text, stop) == held


@pytest.mark.parametrize("text", ["äöü 中文 🙂", "plain"])
def test_characters_of_several_tokens_are_never_sent_in_halves(resident: ResidentModel, text: str) -> None:
    tokenizer = resident.processor.tokenizer
    pieces: list[str] = []
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    params = GenerationParams(max_new_tokens=len(ids) + 1, do_sample=False)
    progress = RowProgress(DecodingRequest(params, on_text=pieces.append), tokenizer, {tokenizer.eos_token_id})
    for token in [*ids, tokenizer.eos_token_id]:
        progress.push(token)
    assert "".join(pieces) == progress.result().text == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
