"""Progress: at most five messages a second, the last one never lost, an eta that makes sense."""

import pytest
from django.db import OperationalError

from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.progress import ClaimLostError, ProgressReporter
from ftproject.core.jobs import claim_job
from ftproject.core.models import Event
from tests.core.jobs import make_evaluation

pytestmark = pytest.mark.django_db


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run() -> EvaluationRun:
    run = make_evaluation(total=1000)
    assert claim_job(run)
    return run


def published() -> list[int]:
    return [event.data["current"] for event in Event.objects.filter(type="eval_progress").order_by("id")]


def add(reporter: ProgressReporter, rows: int) -> None:
    numbers = range(reporter.done, reporter.done + rows)
    reporter.add([Sample(run=reporter.run, index=number, prompt="p", ground_truth="t") for number in numbers])


def test_a_hundred_fast_batches_become_five_messages_a_second_and_the_last_one(run: EvaluationRun) -> None:
    clock = Clock()
    reporter = ProgressReporter(run, clock=clock)
    for _ in range(100):
        clock.now += 0.01
        add(reporter, 10)
    reporter.flush()
    assert len(published()) <= 6
    assert published()[-1] == 1000


def test_the_end_is_not_said_twice(run: EvaluationRun) -> None:
    reporter = ProgressReporter(run, clock=Clock())
    add(reporter, 10)
    reporter.flush()
    assert published() == [10]


def test_a_batch_in_which_no_row_could_be_answered_says_nothing(run: EvaluationRun) -> None:
    ProgressReporter(run).add([])
    assert published() == []


def test_the_row_is_right_after_each_batch_even_when_nothing_was_published(run: EvaluationRun) -> None:
    reporter = ProgressReporter(run, clock=Clock())
    add(reporter, 1)
    add(reporter, 1)
    run.refresh_from_db()
    assert (run.current, run.samples.count(), published()) == (2, 2, [1])


def test_the_eta_is_this_processs_own_speed(run: EvaluationRun) -> None:
    add(ProgressReporter(run), 500)
    clock = Clock()
    reporter = ProgressReporter(run, clock=clock)
    clock.now += 10
    add(reporter, 100)
    run.refresh_from_db()
    assert run.current == 600
    assert run.eta_seconds == pytest.approx(40.0)


def test_a_lost_claim_is_noticed_and_stores_nothing(run: EvaluationRun) -> None:
    EvaluationRun.objects.update(claim="somebody else")
    with pytest.raises(ClaimLostError):
        add(ProgressReporter(run), 1)
    assert Sample.objects.count() == 0


def test_a_locked_database_costs_no_sample(run: EvaluationRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write fails after its samples went in: the second attempt must not find them there."""
    monkeypatch.setattr("ftproject.core.persistence.PAUSE_SECONDS", 0)
    note, failures = EvaluationRun.note, [OperationalError("database is locked")]

    def busy(self: EvaluationRun, **changes: object) -> bool:
        if failures:
            raise failures.pop()
        return note(self, **changes)

    monkeypatch.setattr(EvaluationRun, "note", busy)
    add(ProgressReporter(run), 3)
    run.refresh_from_db()
    assert (run.current, run.samples.count(), published()) == (3, 3, [3])


def test_rows_whose_commit_was_reported_as_failed_are_stored_once(
    run: EvaluationRun, broken_commits: list[object]
) -> None:
    reporter = ProgressReporter(run, clock=Clock())
    add(reporter, 3)
    add(reporter, 2)
    run.refresh_from_db()
    assert len(broken_commits) >= 2
    assert (run.current, run.samples.count()) == (5, 5)
