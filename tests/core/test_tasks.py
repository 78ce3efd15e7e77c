"""What the gpu queue runs, with hand-made executors: claim, lease, watch, settle."""

from collections.abc import Callable
from pathlib import Path

import pytest
from django.utils import timezone

from ftproject.core import tasks
from ftproject.core.executor import LogPart
from ftproject.core.jobs import Job, job_model, stop_job
from ftproject.core.lease import acquire_lease, lease_holder
from tests.core.jobs import make_evaluation, make_training

pytestmark = pytest.mark.django_db


class ScriptedHandle:
    """A run process that lives for some polls, then has ended with an exit code."""

    def __init__(self, exit_code: int, polls: int = 1) -> None:
        self.exit_code, self.polls = exit_code, polls
        self.asked: list[str] = []
        self.closed = False

    def poll(self) -> int | None:
        self.polls -= 1
        return self.exit_code if self.polls < 0 or self.asked else None

    def terminate(self) -> None:
        self.asked.append("terminate")

    def kill(self) -> None:
        self.asked.append("kill")

    def close(self) -> None:
        self.closed = True


class ScriptedExecutor:
    def __init__(self, handle: ScriptedHandle, work: Callable[[Job], object] = lambda job: None) -> None:
        self.handle, self.work = handle, work
        self.submitted: list[tuple[str, int]] = []

    def submit(self, kind: str, run_id: int, claim: str) -> ScriptedHandle:
        self.submitted.append((kind, run_id))
        job = job_model(kind)._default_manager.get(pk=run_id, claim=claim)
        assert lease_holder() == job.name
        self.work(job)
        return self.handle

    def logs(self, kind: str, run_id: int, tail: int) -> str:
        return "the last words"

    def log_since(self, kind: str, run_id: int, offset: int) -> LogPart:
        return LogPart("the last words", 14)


@pytest.fixture(autouse=True)
def own_data_dir(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "POLL_SECONDS", 0.001)


def use(monkeypatch: pytest.MonkeyPatch, executor: ScriptedExecutor) -> ScriptedExecutor:
    monkeypatch.setattr(tasks, "get_executor", lambda: executor)
    return executor


def test_the_oldest_job_runs_under_the_lease_which_is_free_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_training(), make_evaluation()
    executor = use(monkeypatch, ScriptedExecutor(ScriptedHandle(0), lambda job: job.finish("completed")))
    assert tasks.run_next_job() == f"{first.name} completed"
    assert executor.submitted == [("training", first.pk)]
    assert executor.handle.closed
    assert lease_holder() == ""
    second.refresh_from_db()
    assert second.status == "queued"


def test_a_second_delivery_finds_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    make_training()
    executor = use(monkeypatch, ScriptedExecutor(ScriptedHandle(0), lambda job: job.finish("completed")))
    tasks.run_next_job()
    assert tasks.run_next_job() == "nothing to do"
    assert len(executor.submitted) == 1


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [(-9, "SIGKILL"), (-15, "signal 15"), (1, "exit code 1"), (0, "exit code 0")],
)
def test_a_process_that_ends_without_ending_its_row_leaves_the_reason(
    monkeypatch: pytest.MonkeyPatch, exit_code: int, words: str
) -> None:
    job = make_training()
    use(monkeypatch, ScriptedExecutor(ScriptedHandle(exit_code)))
    tasks.run_next_job()
    job.refresh_from_db()
    assert job.status == "error"
    assert words in (job.error or "")
    assert "the last words" in (job.error or "")


def test_an_executor_that_cannot_start_gives_the_lease_back(monkeypatch: pytest.MonkeyPatch) -> None:
    make_training()

    def fail(job: Job) -> None:
        raise OSError("no more processes")

    use(monkeypatch, ScriptedExecutor(ScriptedHandle(0), fail))
    with pytest.raises(OSError, match="no more"):
        tasks.run_next_job()
    assert lease_holder() == ""
    assert job_status() == "error"


def job_status() -> str:
    return str(job_model("training")._default_manager.get().status)


def test_nothing_is_claimed_while_the_server_shuts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_training()
    tasks.drain_flag().touch()
    executor = use(monkeypatch, ScriptedExecutor(ScriptedHandle(0)))
    assert tasks.run_next_job() == "nothing to do"
    job.refresh_from_db()
    assert job.status == "queued"
    assert executor.submitted == []


def test_a_job_cancelled_while_it_waits_for_the_device_never_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_training()
    acquire_lease("inference:1")
    executor = use(monkeypatch, ScriptedExecutor(ScriptedHandle(0)))
    monkeypatch.setattr("time.sleep", lambda _: stop_job(job))
    assert tasks.run_next_job() == "nothing to do"
    assert executor.submitted == []


@pytest.mark.parametrize(
    ("waited", "asked"),
    [(60.0, []), (130.0, ["terminate"]), (160.0, ["kill"])],
)
def test_a_stop_flag_that_is_not_heeded_becomes_a_signal(
    monkeypatch: pytest.MonkeyPatch, waited: float, asked: list[str]
) -> None:
    job = make_training(status="stopping", stop_requested_at=timezone.now())
    handle, patience = ScriptedHandle(0), tasks.StopPatience()
    monkeypatch.setattr(tasks, "clock", lambda: 1000.0)
    tasks.enforce_stop(job, handle, patience)
    monkeypatch.setattr(tasks, "clock", lambda: 1000.0 + waited)
    tasks.enforce_stop(job, handle, patience)
    assert handle.asked == asked


def test_a_run_that_went_back_to_the_queue_is_not_an_error() -> None:
    job = make_evaluation(status="queued")
    tasks.settle(job, 0, ScriptedExecutor(ScriptedHandle(0)))
    job.refresh_from_db()
    assert job.status == "queued"
