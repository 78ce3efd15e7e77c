"""The batch that finished rows leave: the tokens of transformers' own generate, whatever the rows are."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine import greedy
from ftproject.engine import resident as resident_module
from ftproject.engine.configs import GenerationParams
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.greedy import knows_this_transformers, take
from ftproject.engine.resident import ResidentModel
from ftproject.engine.tiny.drawings import draw_sample
from tests.engine.conftest import TrainedAdapter
from tests.engine.support import row

WORDS = ("please", "look", "at", "the", "picture", "and", "say", "what", "you", "see")
LONG = GenerationParams(max_new_tokens=48, do_sample=False)


def mixed_rows(folder: Path, count: int, seed: int) -> list[ResolvedConversation]:
    """Questions with no, one or two pictures, 17 to 170 tokens, answered in 2 to 30."""
    chance, rows = random.Random(seed), []
    for index in range(count):
        drawn = draw_sample(20_000 + 1000 * seed + index)
        paths = []
        for number, image in enumerate(drawn.images if chance.random() < 0.8 else ()):
            paths.append(folder / f"{index}-{number}.png")
            image.save(paths[-1])
        words = " ".join(chance.choices(WORDS, k=chance.choice([0, 0, 5, 20, 60])))
        rows.append(row(index, f"{words} {drawn.prompt}".strip(), drawn.answer, paths))
    return rows


def answers(
    model: ResidentModel, rows: Sequence[ResolvedConversation], adapter: Path | None, params: GenerationParams = LONG
) -> list[tuple[str, int, str]]:
    made = model.generate(rows, params, adapter=adapter)
    return [(answer.text, answer.completion_tokens, answer.finish_reason) for answer in made]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_tokens_are_those_of_generate_one_by_one_and_in_any_batch(
    resident: ResidentModel, trained: TrainedAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rows = mixed_rows(tmp_path, 24, seed)
    assert resident._own_loop
    for adapter in (None, trained.path):
        whole = answers(resident, rows, adapter)
        assert [one for item in rows for one in answers(resident, [item], adapter)] == whole
        assert answers(resident, rows[::-1], adapter) == whole[::-1]
        assert answers(resident, rows[:7], adapter) + answers(resident, rows[7:], adapter) == whole
        with monkeypatch.context() as patch:
            patch.setattr(resident, "_own_loop", False)
            assert answers(resident, rows, adapter) == whole


@pytest.mark.slow
def test_rows_of_text_alone_are_answered_as_by_generate(
    resident: ResidentModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(number, f"{'very ' * number}well, which letter comes after {number}?") for number in range(9)]
    own = answers(resident, rows, None)
    monkeypatch.setattr(resident, "_own_loop", False)
    assert answers(resident, rows, None) == own


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 3])
def test_an_answer_is_cut_at_the_length_asked_for(
    resident: ResidentModel, trained: TrainedAdapter, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    params = GenerationParams(max_new_tokens=length, do_sample=False)
    rows = list(trained.heldout[:9])
    own = answers(resident, rows, trained.path, params)
    assert {count for _, count, _ in own} <= set(range(1, length + 1))
    monkeypatch.setattr(resident, "_own_loop", False)
    assert answers(resident, rows, trained.path, params) == own


@pytest.mark.slow
def test_finished_rows_leave_and_the_last_one_ends_alone(
    resident: ResidentModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = mixed_rows(tmp_path, 24, 3)
    sizes: list[int] = []
    forward = type(resident._model).forward

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(resident._model), "forward", counting)
    lengths = [count for _, count, _ in answers(resident, rows, None)]
    assert sizes[:2] == [24, 24]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == max(lengths)
    # Never a quarter more rows than still go on.
    going = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert all(
        size * greedy.KEPT_AT_MOST < max(still, 1) or size == still
        for size, still in zip(sizes[1:], going, strict=True)
    )


def test_a_row_that_has_ended_gets_no_more_tokens() -> None:
    answers: list[list[int]] = [[5, 2], [5], [6]]
    assert take([7, 2, 8], [0, 1, 2], answers, {2}) == [2]
    assert answers == [[5, 2], [5, 2], [6, 8]]


def test_another_version_of_transformers_keeps_its_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    assert knows_this_transformers()
    monkeypatch.setattr(transformers, "__version__", "6.0.0")
    assert not knows_this_transformers()
    model = ResidentModel.__new__(ResidentModel)
    monkeypatch.setattr(resident_module, "ImageView", lambda *_: type("View", (), {"rule": None})())
    monkeypatch.setattr(resident_module, "pixel_rule_of", lambda _: None)
    model.__init__(None, None, model_name="m", device="cpu", own_loop=True)  # type: ignore[misc]
    assert not model._own_loop
