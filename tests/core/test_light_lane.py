"""The light lane: jobs that need no GPU run beside a training run, and a failing one does not stop the next."""

from pathlib import Path

import pytest
from django.db import OperationalError

from ftproject.core import jobs, light_lane, tasks
from ftproject.core.executor import LogPart
from ftproject.core.jobs import claim_job
from ftproject.core.lease import acquire_lease, lease_holder
from tests.core.jobs import make_evaluation, make_training
from tests.core.test_tasks import ScriptedHandle
from training_app.models import TrainingRun

pytestmark = pytest.mark.django_db


@pytest.fixture
def light_trainings(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """Training runs stand in for light jobs; what a job does is the executor's business here."""
    monkeypatch.setattr(TrainingRun, "NEEDS_GPU", False)
    monkeypatch.setattr(tasks, "POLL_SECONDS", 0.001)


class EndingExecutor:
    def __init__(self, statuses: list[str]) -> None:
        self.statuses = statuses

    def submit(self, kind: str, run_id: int, claim: str) -> ScriptedHandle:
        job = jobs.job_model(kind)._default_manager.get(pk=run_id, claim=claim)
        assert lease_holder() != job.name
        if status := self.statuses.pop(0):
            job.finish(status)
        return ScriptedHandle(0)

    def log_since(self, kind: str, run_id: int, offset: int) -> LogPart:
        return LogPart("", offset)

    def logs(self, kind: str, run_id: int, tail: int) -> str:
        return ""


def test_light_jobs_run_while_the_device_is_held(light_trainings: None) -> None:
    acquire_lease("evaluation:1")
    make_training()
    make_training()
    assert light_lane.run_light_jobs(EndingExecutor(["completed", "completed"])) == 2
    assert set(TrainingRun.objects.values_list("status", flat=True)) == {"completed"}


def test_a_light_job_whose_process_dies_is_an_error_and_the_next_one_runs(light_trainings: None) -> None:
    first, second = make_training(), make_training()
    light_lane.run_light_jobs(EndingExecutor(["", "completed"]))
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.status, second.status) == ("error", "completed")


def test_the_lanes_do_not_wait_for_each_other(light_trainings: None) -> None:
    light, heavy = make_training(), make_evaluation()
    claim_job(light)
    assert not jobs.must_wait(heavy)
    assert jobs.queue_position(heavy) == 1
    assert jobs.queued_jobs(needs_gpu=False) == []


def test_no_light_job_starts_during_a_shutdown(light_trainings: None) -> None:
    make_training()
    tasks.drain_flag().touch()
    assert light_lane.run_light_jobs(EndingExecutor([])) == 0


def test_a_database_that_does_not_answer_for_a_moment_does_not_end_the_watched_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_training()
    handle = ScriptedHandle(0)

    def locked() -> bool:
        raise OperationalError("database is locked")

    monkeypatch.setattr(job, "beat", locked)
    tasks.beat(job, None, handle, tasks.StopPatience())
    assert handle.asked == []
