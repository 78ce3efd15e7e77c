"""The wrapper around background work: whatever a runner throws, its row ends with the reason."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from ftproject.core import run_context
from ftproject.core.errors import ConflictError
from ftproject.core.jobs import Job, claim_job, requeue_job, stop_job
from tests.core.jobs import make_evaluation, make_training

pytestmark = pytest.mark.django_db(transaction=True)


def claimed() -> Any:
    job = make_training()
    assert claim_job(job)
    return job


def run(job: Any, runner: Callable[[Any, Callable[[], bool]], Any]) -> int:
    return run_context.execute(runner, job.KIND, job.pk, job.claim)


def test_a_runner_that_ends_its_row_well_exits_with_zero() -> None:
    job = claimed()
    assert run(job, lambda row, _: row.finish(Job.Status.COMPLETED)) == 0


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (ValueError("bad rows"), "ValueError: bad rows"),
        (ConflictError("No disk.", hint="Free some."), "No disk. Free some."),
        (MemoryError(), "Out of memory"),
        (SystemExit(3), "SystemExit"),
    ],
)
def test_a_runner_that_throws_ends_in_error_with_the_reason(exc: BaseException, words: str) -> None:
    job = claimed()

    def fail(row: Any, _: Any) -> None:
        raise exc

    assert run(job, fail) == 1
    job.refresh_from_db()
    assert job.status == "error"
    assert words in job.error


def test_a_run_that_was_not_claimed_by_this_process_does_nothing() -> None:
    job = claimed()
    calls: list[int] = []
    assert run_context.execute(lambda *_: calls.append(1), job.KIND, job.pk, "another claim") == 4
    assert calls == []


def test_a_run_that_goes_back_to_the_queue_is_no_failure() -> None:
    job = make_evaluation()
    claim_job(job)
    assert run(job, lambda row, _: requeue_job(row, message="later")) == 0


def test_the_runner_learns_of_a_stop_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    job = claimed()

    def wait(row: Any, should_stop: Callable[[], bool]) -> None:
        stop_job(row)
        deadline = time.monotonic() + 2
        while not should_stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        row.finish(Job.Status.COMPLETED, stopped_early=should_stop())

    run(job, wait)
    job.refresh_from_db()
    assert job.stopped_early


def test_a_process_whose_run_was_taken_away_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(run_context, "LEAVE_SECONDS", 0.01)
    job = claimed()
    watch = run_context.RunWatch(job)
    job.finish(Job.Status.ERROR, error="reaped")
    watch.look()
    assert left == [4]


def test_a_database_that_fails_for_a_moment_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    job = claimed()
    watch = run_context.RunWatch(job)

    def gone() -> bool:
        raise OSError("the database restarts")

    monkeypatch.setattr(watch.job, "beat", gone)
    watch.look()
    monkeypatch.undo()
    watch.look()
    assert not watch.should_stop()
