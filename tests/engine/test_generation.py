"""Many rows in batches: the answers of one by one, whatever fails or runs short on the way."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ftproject.engine.backends.base import EngineError, Generation, RowError
from ftproject.engine.configs import GenerationParams
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.generation import EvaluationOutcome, evaluate_rows
from ftproject.engine.resident import ResidentModel
from tests.engine.conftest import TrainedAdapter
from tests.engine.support import SHORT, row, save_image


class CountingModel:
    """Answers with the row's index, notes each batch, and fails as told."""

    model_name, device = "counting", "cpu"

    def __init__(self, fits: int = 1000, broken: Sequence[int] = (), error: Exception | None = None) -> None:
        self.fits, self.broken, self.error = fits, broken, error
        self.batches: list[list[int]] = []
        self.preloaded: list[int] = []

    def preload(self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None) -> None:
        self.preloaded += [item.conversation.index for item in conversations]

    def generate(
        self,
        conversations: Sequence[ResolvedConversation],
        params: GenerationParams,
        *,
        adapter: Path | None,
        on_token: Callable[[str], None] | None = None,
    ) -> list[Generation]:
        import torch

        indices = [item.conversation.index for item in conversations]
        if self.error is not None:
            raise self.error
        if len(indices) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if set(indices) & set(self.broken):
            raise RowError("image_corrupt", "the image is damaged")
        self.batches.append(indices)
        return [Generation(str(index), 1, 1, "stop", 1.0) for index in indices]

    def ensure_adapter(self, path: Path) -> None: ...

    def memory_mb(self) -> int:
        return 0


def evaluate(
    model: CountingModel, count: int, batch_size: int, should_stop: Callable[[], bool] = lambda: False
) -> tuple[EvaluationOutcome, dict[int, str]]:
    answers: dict[int, str] = {}
    rows = [row(number, prompt="x" * (number % 7 + 1)) for number in range(count)]
    outcome = evaluate_rows(
        model,
        rows,
        SHORT,
        adapter=None,
        batch_size=batch_size,
        on_batch=lambda done: answers.update({item.conversation.index: answer.text for item, answer in done}),
        should_stop=should_stop,
    )
    return outcome, answers


@pytest.mark.slow
def test_every_batch_size_gives_the_same_answers(
    resident: ResidentModel, trained: TrainedAdapter, tmp_path: Path
) -> None:
    wide = save_image(tmp_path / "wide.png", (200, 90))
    rows = [
        *trained.heldout[:12],
        row(300, "Describe the image.", images=[wide]),
        row(301, "Do both images show the same shape? Answer yes or no.", images=[wide, wide]),
        row(302, "What is this?"),
    ]

    def answers(batch_size: int, adapter: Path | None) -> dict[int, str]:
        found: dict[int, str] = {}
        evaluate_rows(
            resident,
            rows,
            SHORT,
            adapter=adapter,
            batch_size=batch_size,
            on_batch=lambda done: found.update({item.conversation.index: g.text for item, g in done}),
        )
        return found

    for adapter in (trained.path, None):
        alone = answers(1, adapter)
        assert len(alone) == len(rows)
        assert answers(4, adapter) == alone
        assert answers(16, adapter) == alone


@pytest.mark.slow
def test_a_row_with_a_broken_image_is_reported_and_the_others_answered(
    resident: ResidentModel, trained: TrainedAdapter, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(trained.heldout[0].image_paths[0].read_bytes()[:200])
    rows = [*trained.heldout[:5], row(500, images=[broken]), row(501, images=[tmp_path / "gone.png"])]
    done: list[int] = []
    outcome = evaluate_rows(
        resident,
        rows,
        SHORT,
        adapter=None,
        batch_size=8,
        on_batch=lambda batch: done.extend(item.conversation.index for item, _ in batch),
    )
    assert {item.index for item in outcome.failed} == {500, 501}
    assert all(item.reason for item in outcome.failed)
    assert outcome.answered == len(done) == 5


def test_every_row_is_answered_once_with_rows_of_similar_length_together() -> None:
    model = CountingModel()
    outcome, answers = evaluate(model, 30, 8)
    assert answers == {number: str(number) for number in range(30)}
    assert outcome.answered == 30
    assert [len(batch) for batch in model.batches] == [8, 8, 8, 6]
    assert model.batches[0][:4] == [6, 13, 20, 27]  # the longest prompts come first
    assert sorted(model.preloaded) == sorted(number for batch in model.batches[1:] for number in batch)


def test_a_batch_that_does_not_fit_is_halved_for_good_and_no_row_is_lost() -> None:
    model = CountingModel(fits=3)
    outcome, answers = evaluate(model, 20, 16)
    assert len(answers) == 20
    assert outcome.smallest_batch == 2
    assert max(len(batch) for batch in model.batches) <= 3


def test_a_row_that_does_not_fit_alone_ends_the_run_with_its_number() -> None:
    with pytest.raises(EngineError, match="row 6 alone") as caught:
        evaluate(CountingModel(fits=0), 8, 4)
    assert caught.value.code == "out_of_memory"


def test_broken_rows_are_found_by_halving_and_do_not_shrink_later_batches() -> None:
    model = CountingModel(broken=[3, 11])
    outcome, answers = evaluate(model, 16, 8)
    assert sorted(item.index for item in outcome.failed) == [3, 11]
    assert sorted(answers) == [number for number in range(16) if number not in (3, 11)]
    assert outcome.smallest_batch == 8


def test_an_error_of_another_kind_is_not_swallowed() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        evaluate(CountingModel(error=RuntimeError("shape mismatch")), 4, 2)


def test_a_stop_is_obeyed_between_batches() -> None:
    asked = iter([False, False, True])
    outcome, answers = evaluate(CountingModel(), 30, 8, should_stop=lambda: next(asked))
    assert outcome.stopped is True
    assert len(answers) == outcome.answered == 16


def test_no_rows_are_no_work() -> None:
    outcome, answers = evaluate(CountingModel(), 0, 8)
    assert (outcome.answered, outcome.failed, answers) == (0, [], {})
