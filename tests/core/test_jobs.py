"""The job state machine: every arrow is one conditional update, and the dead are noticed."""

import os
from datetime import timedelta

import pytest
from django.utils import timezone

from ftproject.core import jobs
from ftproject.core.errors import ConflictError
from ftproject.core.jobs import Job
from ftproject.core.models import Event
from ftproject.core.processes import process_lives, this_process
from ftproject.core.silence import CONFIRM_SECONDS
from tests.core.clocks import Ticks
from tests.core.jobs import make_evaluation, make_training

pytestmark = pytest.mark.django_db


def test_the_queue_is_first_in_first_out_across_kinds() -> None:
    first, second, third = make_training(), make_evaluation(), make_training()
    assert [job.name for job in jobs.queued_jobs()] == [first.name, second.name, third.name]
    assert [jobs.queue_position(job) for job in (first, second, third)] == [1, 2, 3]


def test_a_job_is_claimed_once_however_often_it_is_asked_for() -> None:
    job = make_training()
    same = type(job).objects.get(pk=job.pk)
    assert jobs.claim_job(job)
    assert not jobs.claim_job(same)
    assert job.status == Job.Status.LOADING_MODEL


def test_the_job_at_the_head_of_an_idle_queue_does_not_have_to_wait() -> None:
    job = make_training()
    assert not jobs.must_wait(job)
    assert jobs.must_wait(make_evaluation())


def test_a_job_behind_a_running_one_has_to_wait() -> None:
    jobs.claim_job(make_training())
    job = make_training()
    assert jobs.must_wait(job)
    assert jobs.queue_position(job) == 1


def test_an_ended_job_does_not_move_again() -> None:
    job = make_training()
    jobs.claim_job(job)
    assert job.finish(Job.Status.COMPLETED)
    assert not job.finish(Job.Status.ERROR, error="late")
    assert not job.advance(Job.Status.TRAINING)
    assert not job.note(current_step=3)
    job.refresh_from_db()
    assert (job.status, job.error) == (Job.Status.COMPLETED, None)


def test_a_process_with_an_older_claim_cannot_write() -> None:
    job = make_training()
    jobs.claim_job(job)
    stale = type(job).objects.get(pk=job.pk)
    stale.claim = "another"
    assert not stale.beat()
    assert not stale.finish(Job.Status.ERROR, error="not mine")


def test_stopping_a_waiting_job_cancels_it_with_a_reason() -> None:
    job = jobs.stop_job(make_training())
    assert job.status == Job.Status.ERROR
    assert job.error == "Cancelled before it started."
    assert Event.objects.filter(type="training_error").count() == 1


def test_stopping_a_running_job_sets_the_flag_and_keeps_the_phase_from_overwriting_it() -> None:
    job = make_training()
    jobs.claim_job(job)
    jobs.stop_job(job)
    assert not job.advance(Job.Status.TRAINING)
    job.refresh_from_db()
    assert job.status == Job.Status.STOPPING
    assert job.stop_requested_at is not None


def test_stopping_an_ended_job_is_refused() -> None:
    job = make_training(status=Job.Status.COMPLETED)
    with pytest.raises(ConflictError) as refusal:
        jobs.stop_job(job)
    assert refusal.value.code == "no_active_run"


def test_a_job_without_a_heartbeat_is_ended_with_the_reason(ticks: Ticks) -> None:
    job = make_training()
    jobs.claim_job(job)
    type(job).objects.update(heartbeat_at=timezone.now() - jobs.HEARTBEAT_TTL - timedelta(seconds=1))
    assert jobs.reap_dead_jobs() == [], "the clock may have been set"
    ticks.pass_by(CONFIRM_SECONDS)
    assert [dead.pk for dead in jobs.reap_dead_jobs()] == [job.pk]
    job.refresh_from_db()
    assert job.status == Job.Status.ERROR
    assert "stopped answering" in (job.error or "")


def test_a_job_whose_process_is_gone_is_ended_at_once() -> None:
    job = make_training()
    jobs.claim_job(job)
    host, _, _ = job.supervisor.rsplit(":", 2)
    type(job).objects.update(supervisor=f"{host}:{os.getpid()}:1.00")
    assert jobs.reap_dead_jobs()
    job.refresh_from_db()
    assert "without a word" in (job.error or "")


def test_a_living_job_is_left_alone() -> None:
    jobs.claim_job(make_training())
    assert jobs.reap_dead_jobs() == []


@pytest.mark.parametrize("supervisor", ["", "no colons", "otherhost:1:1.0", "a:b:c"])
def test_a_supervisor_that_cannot_be_judged_counts_as_alive(supervisor: str) -> None:
    assert process_lives(supervisor)


def test_a_pid_that_does_not_exist_is_dead() -> None:
    host, _, _ = this_process().rsplit(":", 2)
    assert not process_lives(f"{host}:999999999:1.00")


def test_a_job_can_go_back_to_the_queue_and_keeps_its_place() -> None:
    job, later = make_evaluation(), make_training()
    jobs.claim_job(job)
    assert jobs.requeue_job(job, message="later")
    assert [waiting.name for waiting in jobs.queued_jobs()] == [job.name, later.name]
    assert job.claim == ""


def test_status_shows_the_running_job_else_the_newest() -> None:
    first, second = make_training(), make_training()
    assert type(first).active_or_newest() == second
    jobs.claim_job(first)
    assert type(first).active_or_newest() == first


def test_an_idempotency_key_finds_its_job_and_refuses_another_body() -> None:
    job = make_training(idempotency_key="k", request_sha256="a")
    assert jobs.find_idempotent(type(job), "k", "a") == job
    assert jobs.find_idempotent(type(job), "other", "a") is None
    assert jobs.find_idempotent(type(job), None, "a") is None
    with pytest.raises(ConflictError, match="another request body"):
        jobs.find_idempotent(type(job), "k", "b")


def test_elapsed_seconds_is_unknown_before_the_start_and_fixed_after_the_end() -> None:
    start = timezone.now()
    job = make_training()
    assert job.elapsed_seconds is None
    job.started_at, job.completed_at = start, start + timedelta(seconds=5)
    assert job.elapsed_seconds == 5.0


def test_a_message_longer_than_its_column_is_cut() -> None:
    job = make_training()
    jobs.claim_job(job)
    assert job.advance(Job.Status.TRAINING, message="m" * 5000)
    assert job.finish(Job.Status.COMPLETED, message="n" * 5000)
    job.refresh_from_db()
    assert job.message == "n" * 500
