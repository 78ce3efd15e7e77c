"""Many rows in batches: the answers of one by one, whatever fails or runs short on the way."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ftproject.engine.answering import ChatAnswer, ChatRequest
from ftproject.engine.backends.base import Generation, RowError
from ftproject.engine.configs import GenerationParams
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.generation import EvaluationOutcome, answer_windows, evaluate_rows
from ftproject.engine.resident import ResidentModel
from tests.engine.conftest import TrainedAdapter
from tests.engine.support import SHORT, row, save_image


class CountingModel:
    """Answers with the row's index, notes each batch, and fails as told; a character of a prompt is a token.

    `fits` is how many tokens memory holds; `roomy_after` batches it holds as many as one likes.
    """

    model_name, device = "counting", "cpu"

    def __init__(
        self,
        fits: int = 10**9,
        broken: Sequence[int] = (),
        error: Exception | None = None,
        budget: int | None = None,
        roomy_after: int | None = None,
    ) -> None:
        self.fits, self.broken, self.error, self.budget = fits, broken, error, budget
        self.roomy_after = roomy_after
        self.batches: list[list[int]] = []
        self.preloaded: list[int] = []
        self.failures = 0

    def prompt_lengths(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None
    ) -> list[int]:
        return [len(item.conversation.prompt) for item in conversations]

    def batch_tokens(self) -> int | None:
        return self.budget

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        raise AssertionError("rows are evaluated by generate")

    def answer_log_probabilities(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None
    ) -> list[float]:
        raise AssertionError("nobody asked for confidence")

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
        if self.roomy_after is not None and len(self.batches) >= self.roomy_after:
            self.fits = 10**9
        longest = max(len(item.conversation.prompt) for item in conversations)
        if len(indices) * (longest + params.max_new_tokens) > self.fits:
            self.failures += 1
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
    rows = [row(number, prompt="x" * (number % 7 + 1)) for number in range(count)]
    return evaluate_all(model, rows, batch_size, should_stop)


def evaluate_all(
    model: CountingModel,
    rows: Sequence[ResolvedConversation],
    batch_size: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[EvaluationOutcome, dict[int, str]]:
    answers: dict[int, str] = {}
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


def test_a_batch_that_does_not_fit_is_halved_and_no_row_is_lost() -> None:
    model = CountingModel(fits=3 * 15)
    outcome, answers = evaluate(model, 20, 16)
    assert len(answers) == 20
    assert outcome.smallest_batch == 2
    assert max(len(batch) for batch in model.batches) <= 4
    assert model.failures <= 4


def test_a_row_that_does_not_fit_alone_is_reported_and_the_others_are_answered() -> None:
    model = CountingModel(fits=2 * (6 + SHORT.max_new_tokens))
    rows = [row(number, prompt="x" * (200 if number == 4 else 6)) for number in range(9)]
    outcome, answers = evaluate_all(model, rows, 4)
    assert [item.index for item in outcome.failed] == [4]
    assert "not even alone" in outcome.failed[0].reason
    assert (outcome.out_of_memory, sorted(answers)) == (1, [0, 1, 2, 3, 5, 6, 7, 8])


def test_a_model_for_which_no_row_fits_reports_every_row() -> None:
    outcome, answers = evaluate(CountingModel(fits=0), 8, 4)
    assert (len(outcome.failed), outcome.out_of_memory, outcome.answered, answers) == (8, 8, 0, {})


def test_memory_that_was_short_for_a_while_does_not_slow_the_rest() -> None:
    model = CountingModel(fits=4 * 14, roomy_after=4)
    _, answers = evaluate(model, 2000, 32)
    sizes = [len(batch) for batch in model.batches]
    assert len(answers) == 2000
    assert max(sizes[:4]) <= 4
    assert sizes[-2] == 32


def test_what_never_fits_is_tried_again_ever_more_rarely() -> None:
    model = CountingModel(fits=8 * 15)
    evaluate(model, 4000, 32)
    assert len(model.batches) >= 400
    assert model.failures <= 8


def test_a_batch_takes_the_tokens_that_fit_and_long_rows_fewer_at_once() -> None:
    model = CountingModel(budget=400)
    rows = [row(number, prompt="x" * (92 if number < 10 else 12)) for number in range(60)]
    _, answers = evaluate_all(model, rows, 16)
    assert len(answers) == 60
    assert [len(batch) for batch in model.batches] == [4, 4, 4, 16, 16, 16]


def test_a_row_beyond_the_budget_is_tried_alone() -> None:
    model = CountingModel(budget=5)
    _, answers = evaluate(model, 3, 16)
    assert [len(batch) for batch in model.batches] == [1, 1, 1]
    assert len(answers) == 3


def test_windows_are_taken_one_at_a_time_and_only_when_the_one_before_is_answered() -> None:
    model, taken = CountingModel(), []

    def windows() -> Iterator[list[ResolvedConversation]]:
        for start in (0, 10, 20):
            taken.append((start, sum(map(len, model.batches))))
            yield [row(number, prompt="x") for number in range(start, start + 10)]

    outcome = answer_windows(
        model, windows(), SHORT, adapter=None, batch_size=8, on_batch=lambda _: None, on_failed=lambda *_: None
    )
    assert taken == [(0, 0), (10, 10), (20, 20)]
    assert outcome.answered == 30


def test_a_row_that_cannot_be_encoded_is_on_its_own_and_spoils_no_batch() -> None:
    model = CountingModel(broken=[5])
    rows = [row(number, prompt="" if number == 5 else "xx") for number in range(8)]
    outcome, answers = evaluate_all(model, rows, 8)
    assert [item.index for item in outcome.failed] == [5]
    assert [len(batch) for batch in model.batches] == [7]
    assert len(answers) == 7


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
