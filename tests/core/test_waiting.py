"""How a command waits for its runs: it works the queue itself when nobody does, and gives up instead of hanging."""

from pathlib import Path

import pytest
from django.core.management import CommandError
from rich.console import Console

from ftproject.core import waiting
from ftproject.core.executor import Executor
from ftproject.core.jobs import stop_job
from ftproject.core.waiting import JobKindView, JobsWait
from tests.core.jobs import make_training

pytestmark = pytest.mark.django_db(transaction=True)

VIEW = JobKindView(
    bar=lambda job: {"description": job.status, "total": 1, "completed": 0}, stop=stop_job, stop_notice="Stopping."
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "WORKER_LOOK_SECONDS", 0.01)


def test_a_queue_that_cannot_be_worked_is_given_up_with_the_reason_and_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_training()

    def fail(executor: Executor) -> str:
        raise OSError("no more processes")

    monkeypatch.setattr(waiting, "run_next_job", fail)
    with pytest.raises(CommandError, match="no more processes"):
        JobsWait({"train": job}, VIEW, Console(quiet=True)).until_ended()
    job.refresh_from_db()
    assert job.status == "queued"


def test_it_works_the_queue_until_its_last_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_training(), make_training()
    order: list[int] = []

    def end_the_oldest(executor: Executor) -> str:
        oldest = type(first).objects.filter(status="queued").order_by("id").first()
        if oldest is None:
            return "nothing to do"
        order.append(oldest.pk)
        stop_job(oldest)
        return "done"

    monkeypatch.setattr(waiting, "run_next_job", end_the_oldest)
    JobsWait({"one": first, "two": second}, VIEW, Console(quiet=True)).until_ended()
    assert order == [first.pk, second.pk]
    assert second.is_terminal


def test_beside_a_worker_it_only_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_training()
    monkeypatch.setattr(waiting, "queue_worker_seen", lambda: bool(stop_job(job)) or True)
    wait = JobsWait({"train": job}, VIEW, Console(quiet=True))
    wait.until_ended()
    assert wait.worker is None
