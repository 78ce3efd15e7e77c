"""How probable each label is as an answer: the model's own loss, whatever the batch; and lack of memory."""

from __future__ import annotations

import doctest
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine import label_scores
from ftproject.engine.backends import get_backend
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.label_scores import normalised, score_labels
from ftproject.engine.resident import ResidentModel
from tests.engine.conftest import TrainedAdapter
from tests.engine.support import CPU, SHORT, row

DIGITS = {str(digit): str(digit) for digit in range(10)}


def with_response(item: ResolvedConversation, text: str) -> ResolvedConversation:
    return replace(item, conversation=replace(item.conversation, response=text))


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(label_scores).failed == 0


@given(st.dictionaries(st.text(max_size=3), st.floats(-5000, 0), min_size=1, max_size=8))
def test_probabilities_sum_to_one_and_keep_the_order(scores: dict[str, float]) -> None:
    found = normalised(scores)
    assert math.isclose(sum(found.values()), 1.0, rel_tol=1e-9)
    assert sorted(found, key=found.__getitem__)[-1] in {
        label for label, value in scores.items() if math.isclose(value, max(scores.values()), abs_tol=1e-9)
    }


@pytest.mark.slow
def test_the_score_of_an_answer_is_the_models_own_loss_over_its_tokens(
    resident: ResidentModel, trained: TrainedAdapter
) -> None:
    import torch

    item = with_response(trained.heldout[0], "a red circle")
    [found] = resident.answer_log_probabilities([item], adapter=None)
    encoded = resident._own_view.encoder.encode(item, with_response=True)
    kept = [label for label in encoded.labels if label != -100]
    inputs = resident._inputs([encoded], None)
    labels = torch.tensor([encoded.labels])
    labels[0, -1] = -100  # the template's newline behind the end of the turn
    with torch.inference_mode():
        loss = resident._model(**inputs, labels=labels).loss
    assert found == pytest.approx(-float(loss) * (len(kept) - 1), rel=1e-4)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_batch_they_were_computed_in(
    resident: ResidentModel, trained: TrainedAdapter
) -> None:
    rows = [*trained.heldout[:4], row(7, "Which colour has a long stop sign, seen from far away?", response="red")]
    one_by_one = score_labels(resident, rows, DIGITS, adapter=trained.path, batch_size=1)
    together = score_labels(resident, rows, DIGITS, adapter=trained.path, batch_size=64)
    for single, batched in zip(one_by_one, together, strict=True):
        assert single is not None
        assert batched is not None
        assert list(single) == list(batched) == list(DIGITS)
        assert list(batched.values()) == pytest.approx(list(single.values()), abs=1e-5)


@pytest.mark.slow
def test_the_most_probable_label_is_the_greedy_answer_and_the_adapter_changes_it(
    resident: ResidentModel, trained: TrainedAdapter
) -> None:
    rows = list(trained.heldout[:10])
    answers = [answer.text for answer in resident.generate(rows, SHORT, adapter=trained.path)]
    tuned = score_labels(resident, rows, DIGITS, adapter=trained.path, batch_size=16)
    best = [max(scores, key=scores.__getitem__) for scores in tuned if scores]
    digits = [(found, answer) for found, answer in zip(best, answers, strict=True) if answer in DIGITS]
    assert len(digits) >= 5
    assert all(found == answer for found, answer in digits)
    base = score_labels(resident, rows, DIGITS, adapter=None, batch_size=16)
    assert base != tuned
    assert base == score_labels(resident, rows, DIGITS, adapter=None, batch_size=16)


@pytest.mark.slow
def test_labels_of_different_length_are_probabilities_of_whole_answers(
    resident: ResidentModel, trained: TrainedAdapter
) -> None:
    rows = list(trained.heldout[:2])
    spellings = {"7": "7", "77": "77", "a long answer": "a long answer", "empty": ""}
    for scores in score_labels(resident, rows, spellings, adapter=trained.path, batch_size=3):
        assert scores is not None
        assert sum(scores.values()) == pytest.approx(1.0)
        assert max(scores.values()) == max(scores["7"], scores["77"])


@pytest.mark.slow
def test_a_row_that_cannot_be_read_has_no_score_and_spoils_no_other(
    resident: ResidentModel, trained: TrainedAdapter, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    rows = [trained.heldout[0], row(1, images=[broken]), trained.heldout[1]]
    found = score_labels(resident, rows, DIGITS, adapter=None, batch_size=30)
    assert [scores is None for scores in found] == [False, True, False]
    alone = score_labels(resident, rows[:1], DIGITS, adapter=None, batch_size=30)
    assert found[0] == pytest.approx(alone[0], abs=1e-5)


class SmallMemory:
    """A model with room for so many answers at once; its score is the length of the response."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.batches: list[int] = []

    def answer_log_probabilities(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None
    ) -> list[float]:
        if len(conversations) > self.room:
            raise MemoryError
        self.batches.append(len(conversations))
        return [-float(len(item.conversation.response)) for item in conversations]


def score(model: Any, count: int, batch_size: int) -> list[dict[str, float] | None]:
    rows = [row(index) for index in range(count)]
    return score_labels(model, rows, {"a": "x", "b": "xx"}, adapter=None, batch_size=batch_size)


def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost() -> None:
    model = SmallMemory(room=3)
    found = score(model, count=5, batch_size=8)
    assert found == score(SmallMemory(room=100), count=5, batch_size=100)
    assert len(found) == 5
    assert max(model.batches) == 2
    assert found[0] == pytest.approx({"a": 1 / (1 + math.exp(-1)), "b": 1 / (1 + math.exp(1))})


def test_no_room_for_one_answer_leaves_the_row_without_a_score() -> None:
    assert score(SmallMemory(room=0), count=2, batch_size=4) == [None, None]


def test_other_faults_are_not_taken_for_lack_of_memory() -> None:
    class BrokenModel:
        def answer_log_probabilities(self, conversations: Any, *, adapter: Any) -> list[float]:
            raise RuntimeError("illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        score(BrokenModel(), count=1, batch_size=4)


def test_no_rows_are_no_scores() -> None:
    assert score(SmallMemory(room=1), count=0, batch_size=4) == []


def test_the_fake_backend_is_sure_of_the_ground_truth_with_an_adapter(tmp_path: Path) -> None:
    model = get_backend("fake", CPU).load("tiny-qwen3-vl", "unused")
    [base] = score_labels(model, [row(0, truth="b")], {"a": "a", "b": "b"}, adapter=None, batch_size=2)
    [tuned] = score_labels(model, [row(0, truth="b")], {"a": "a", "b": "b"}, adapter=tmp_path, batch_size=2)
    assert base == {"a": 0.5, "b": 0.5}
    assert tuned is not None
    assert tuned["b"] == pytest.approx(0.9)
