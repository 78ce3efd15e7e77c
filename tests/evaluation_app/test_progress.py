"""Progress: at most five messages a second, the last one never lost, an eta that makes sense."""

import pytest

from evaluation_app.models import EvaluationRun
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


def test_a_hundred_fast_batches_become_five_messages_a_second_and_the_last_one(run: EvaluationRun) -> None:
    clock = Clock()
    reporter = ProgressReporter(run, done=0, clock=clock)
    for _ in range(100):
        clock.now += 0.01
        reporter.add(10)
    reporter.flush()
    assert len(published()) <= 6
    assert published()[-1] == 1000


def test_the_end_is_not_said_twice(run: EvaluationRun) -> None:
    reporter = ProgressReporter(run, done=0, clock=Clock())
    reporter.add(1000)
    reporter.flush()
    assert published() == [1000]


def test_the_row_is_right_after_each_batch_even_when_nothing_was_published(run: EvaluationRun) -> None:
    reporter = ProgressReporter(run, done=0, clock=Clock())
    reporter.add(1)
    reporter.add(1)
    run.refresh_from_db()
    assert (run.current, published()) == (2, [1])


def test_the_eta_is_this_processs_own_speed(run: EvaluationRun) -> None:
    clock = Clock()
    reporter = ProgressReporter(run, done=500, clock=clock)
    assert reporter.eta() is None
    clock.now += 10
    reporter.add(100)
    run.refresh_from_db()
    assert run.eta_seconds == pytest.approx(40)


def test_a_lost_claim_is_noticed(run: EvaluationRun) -> None:
    EvaluationRun.objects.update(claim="somebody else")
    with pytest.raises(ClaimLostError):
        ProgressReporter(run, done=0).add(1)
