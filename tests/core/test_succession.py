"""One process, several runs: the next waiting job is taken up in order, whole, and by nobody else."""

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from ftproject.core import run_context, tasks
from ftproject.core.executor import LocalExecutor
from ftproject.core.jobs import Job, claim_job, claim_successor, current_job, reap_dead_jobs, stop_job
from ftproject.core.lease import acquire_lease, lease_holder, release_lease, want_lease
from ftproject.core.models import GpuLease
from ftproject.core.run_context import Succession, execute
from ftproject.core.tasks import drain_flag
from tests.core.jobs import make_evaluation, make_training
from tests.core.test_tasks import ScriptedExecutor, ScriptedHandle

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def own_data_dir(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "POLL_SECONDS", 0.001)


def claimed_evaluation() -> Any:
    """A run under the lease, as `take_next_job` leaves it."""
    job = make_evaluation()
    assert acquire_lease(job.name)
    assert claim_job(job)
    return job


def complete(job: Any, _: Callable[[], bool]) -> None:
    job.finish(Job.Status.COMPLETED)


class Work:
    """Runs jobs through `execute`, noting which were done and which were entered."""

    def __init__(self, runner: Callable[[Any, Callable[[], bool]], None] = complete, *, last: str = "") -> None:
        self.runner, self.done, self.entered = runner, [], []
        self.succession = Succession(lambda _, waiting: waiting.KIND == "evaluation", self.enter, last)

    done: list[int]
    entered: list[int]

    def enter(self, job: Job) -> None:
        self.entered.append(job.pk)

    def run(self, job: Any) -> int:
        def noting(row: Any, should_stop: Callable[[], bool]) -> None:
            self.done.append(row.pk)
            self.runner(row, should_stop)

        return execute(noting, job.KIND, job.pk, job.claim, self.succession)


def test_evaluations_that_wait_in_a_row_are_done_by_one_process_under_one_lease() -> None:
    first = claimed_evaluation()
    second, third = make_evaluation(), make_evaluation()
    holders: list[str] = []

    def runner(job: Any, stop: Callable[[], bool]) -> None:
        holders.append(lease_holder())
        complete(job, stop)

    work = Work(runner)
    assert work.run(first) == 0
    assert work.done == [first.pk, second.pk, third.pk]
    assert work.entered == [second.pk, third.pk]
    assert holders == [first.name, second.name, third.name]
    second.refresh_from_db()
    first.refresh_from_db()
    assert (second.status, second.claim, second.supervisor) == ("completed", first.claim, first.supervisor)
    assert second.started_at is not None


def test_the_queues_order_is_kept_a_training_before_it_is_not_passed_by() -> None:
    first = claimed_evaluation()
    make_training()
    make_evaluation()
    work = Work()
    work.run(first)
    assert work.done == [first.pk]
    assert lease_holder() == first.name


@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param(lambda job: drain_flag().touch(), id="the server shuts down"),
        pytest.param(lambda job: want_lease("inference:1"), id="somebody wants the device"),
        pytest.param(stop_job, id="the run was asked to stop"),
        pytest.param(lambda job: os.kill(os.getpid(), signal.SIGTERM), id="the process is asked to leave"),
        pytest.param(lambda job: lose_lease(), id="the lease is somebody else's"),
    ],
)
def test_nothing_is_taken_up_when(meanwhile: Callable[[Any], object]) -> None:
    first, second = claimed_evaluation(), make_evaluation()

    def runner(job: Any, _: Callable[[], bool]) -> None:
        meanwhile(type(job).objects.get(pk=job.pk))
        job.finish(Job.Status.COMPLETED)

    work = Work(runner)
    work.run(first)
    assert work.done == [first.pk]
    second.refresh_from_db()
    assert (second.status, second.claim) == ("queued", "")


def lose_lease() -> None:
    assert release_lease(GpuLease.objects.get().token)
    assert acquire_lease("inference:2")


def test_a_process_whose_run_failed_takes_up_nothing_more() -> None:
    first, second = claimed_evaluation(), make_evaluation()

    def fail(job: Any, _: Callable[[], bool]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert Work(fail).run(first) == 1
    second.refresh_from_db()
    assert second.status == "queued"


def test_the_exit_code_is_that_of_the_worst_run() -> None:
    first = claimed_evaluation()
    second = make_evaluation()

    def second_fails(job: Any, stop: Callable[[], bool]) -> None:
        if job.pk == second.pk:
            raise RuntimeError("no")
        complete(job, stop)

    assert Work(second_fails).run(first) == 1


def test_a_command_that_leaves_after_its_last_run_takes_up_nobody_elses() -> None:
    first = claimed_evaluation()
    own, other = make_evaluation(), make_evaluation()
    work = Work(last=own.name)
    work.run(first)
    assert work.done == [first.pk, own.pk]
    other.refresh_from_db()
    assert other.status == "queued"


def test_a_run_that_is_deleted_right_after_its_end_ends_its_process_well() -> None:
    first, second = claimed_evaluation(), make_evaluation()

    def runner(job: Any, stop: Callable[[], bool]) -> None:
        complete(job, stop)
        type(job).objects.filter(pk=job.pk).delete()

    assert Work(runner).run(first) == 0
    second.refresh_from_db()
    assert second.status == "queued"


def test_the_supervisor_of_a_deleted_run_lets_its_process_end(monkeypatch: pytest.MonkeyPatch) -> None:
    first = claimed_evaluation()
    handle = ScriptedHandle(0, polls=2)
    monkeypatch.setattr(tasks, "BEAT_SECONDS", 0.0)
    tasks.supervise(first, None, ScriptedExecutor(handle, lambda job: type(job)._default_manager.all().delete()))
    assert (handle.asked, handle.closed) == ([], True)


def test_a_cancelled_job_is_not_taken_up_and_the_lease_keeps_its_name() -> None:
    first, second = claimed_evaluation(), make_evaluation()
    first.finish(Job.Status.COMPLETED)
    stop_job(second)
    assert not claim_successor(first, second)
    assert lease_holder() == first.name
    second.refresh_from_db()
    assert (second.status, second.claim) == ("error", "")


def test_a_job_that_is_taken_up_while_the_server_begins_to_stop_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag is set and the active jobs are stopped between the look at the flag and the claim."""
    first, second = claimed_evaluation(), make_evaluation()
    looks = iter([False, True])
    monkeypatch.setattr(run_context, "is_draining", lambda: next(looks))
    work = Work()
    work.run(first)
    second.refresh_from_db()
    assert (work.done, second.status, second.claim) == ([first.pk], "queued", "")


def test_a_job_that_another_queue_process_has_claimed_is_not_taken_up() -> None:
    first, second = claimed_evaluation(), make_evaluation()
    first.finish(Job.Status.COMPLETED)
    same = type(second).objects.get(pk=second.pk)
    assert claim_job(same)
    assert not claim_successor(first, second)
    assert lease_holder() == first.name
    same.refresh_from_db()
    assert same.claim != first.claim


def test_the_supervisor_follows_its_process_to_the_next_run_and_settles_that_one() -> None:
    first, second = claimed_evaluation(), make_evaluation()

    def work(job: Job) -> None:
        job.finish(Job.Status.COMPLETED)
        assert claim_successor(job, second)

    ended = tasks.supervise(first, None, ScriptedExecutor(ScriptedHandle(-9), work))
    first.refresh_from_db()
    second.refresh_from_db()
    assert ended.pk == second.pk
    assert (first.status, first.error) == ("completed", None)
    assert second.status == "error"
    assert "SIGKILL" in (second.error or "")


def test_the_supervisor_beats_for_the_run_in_work_and_enforces_its_stop_alone() -> None:
    first, second = claimed_evaluation(), make_evaluation()
    first.finish(Job.Status.COMPLETED)
    assert claim_successor(first, second)
    old = timezone.now() - timedelta(seconds=200)
    type(first).objects.filter(pk=first.pk).update(stop_requested_at=old)
    type(second).objects.filter(pk=second.pk).update(heartbeat_at=old)
    handle = ScriptedHandle(0)
    patience = tasks.StopPatience()
    patience.known_since[first.name] = -tasks.KILL_AFTER
    tasks.beat(first, None, handle, patience)
    second.refresh_from_db()
    assert handle.asked == []
    assert second.heartbeat_at is not None
    assert second.heartbeat_at > old
    assert current_job(first) == second


def test_a_successor_whose_supervisor_is_gone_is_reaped_and_its_lease_freed() -> None:
    first, second = claimed_evaluation(), make_evaluation()
    host = first.supervisor.rsplit(":", 2)[0]
    type(first).objects.filter(pk=first.pk).update(supervisor=f"{host}:{2**22 + 1}:1.00")
    first.refresh_from_db()
    first.finish(Job.Status.COMPLETED)
    assert claim_successor(first, second)
    assert [job.pk for job in reap_dead_jobs()] == [second.pk]
    assert lease_holder() == ""


def test_sigterm_between_two_runs_stops_the_second_at_once() -> None:
    first, second = claimed_evaluation(), make_evaluation()
    asked: list[bool] = []

    def runner(job: Any, should_stop: Callable[[], bool]) -> None:
        asked.append(should_stop())
        complete(job, should_stop)

    work = Work(runner)
    work.succession = Succession(lambda *_: True, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    work.run(first)
    assert (work.done, asked) == ([first.pk, second.pk], [False, True])


def test_the_name_of_the_last_job_reaches_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("subprocess.Popen", lambda command, **_: started.append(command))
    LocalExecutor(last="evaluation:7").submit("evaluation", 1, "claim")
    assert started[0][-2:] == ["--last", "evaluation:7"]
