"""The wall clock is set forward or back by hours: no living run is ended, and no dead one is kept."""

from datetime import timedelta
from typing import Any

import psutil
import pytest
from django.db import OperationalError, connection
from django_q.models import OrmQ

from ftproject.core import jobs, lease, silence, tasks
from ftproject.core.jobs import Job
from ftproject.core.models import GpuLease
from ftproject.core.processes import process_lives, this_process
from ftproject.system import housekeeping
from tests.core.clocks import Ticks, WallClock
from tests.core.jobs import make_training
from tests.core.test_tasks import ScriptedHandle

pytestmark = pytest.mark.django_db

STEPS = [timedelta(hours=hours) for hours in (-30 * 24, -5, -1, 1, 5, 30 * 24)]
LOOK = 3.0
steps = pytest.mark.parametrize("step", STEPS, ids=str)


def running() -> Any:
    job = make_training()
    assert jobs.claim_job(job)
    return job


@steps
def test_a_beating_run_outlives_a_step_of_the_clock(step: timedelta, ticks: Ticks, wall_clock: WallClock) -> None:
    job = running()
    for look in range(40):
        if look == 5:
            wall_clock.set_by = step
        assert jobs.reap_dead_jobs() == []
        ticks.pass_by(LOOK)
        job.beat()
    job.refresh_from_db()
    assert job.is_active


@steps
def test_a_silent_run_is_ended_within_thirty_seconds_whatever_the_clock_says(
    step: timedelta, ticks: Ticks, wall_clock: WallClock
) -> None:
    job = running()
    assert jobs.reap_dead_jobs() == []
    wall_clock.set_by = step
    began = ticks.now
    while not jobs.reap_dead_jobs():
        ticks.pass_by(LOOK)
        assert ticks.now - began <= 30
    job.refresh_from_db()
    assert job.status == Job.Status.ERROR


@steps
def test_a_beating_holder_keeps_the_device_over_a_step_of_the_clock(
    step: timedelta, ticks: Ticks, wall_clock: WallClock
) -> None:
    token = lease.acquire_lease("training:1")
    assert token
    for look in range(200):
        if look == 20:
            wall_clock.set_by = step
        assert lease.acquire_lease("training:2") is None
        assert lease.lease_holder() == "training:1"
        ticks.pass_by(tasks.POLL_SECONDS)
        if look % 10 == 9:
            assert lease.beat_lease(token)


@steps
def test_a_silent_holder_loses_the_device_whatever_the_clock_says(
    step: timedelta, ticks: Ticks, wall_clock: WallClock
) -> None:
    lease.acquire_lease("training:1")
    assert lease.acquire_lease("training:2") is None
    wall_clock.set_by = step
    began = ticks.now
    while lease.acquire_lease("training:2") is None:
        ticks.pass_by(tasks.POLL_SECONDS)
        assert ticks.now - began <= 30
    assert GpuLease.objects.get().holder == "training:2"


@steps
def test_a_run_that_saves_its_adapter_is_not_killed_by_a_step_of_the_clock(
    step: timedelta, ticks: Ticks, wall_clock: WallClock
) -> None:
    job = jobs.stop_job(running())
    handle, patience = ScriptedHandle(0), tasks.StopPatience()
    tasks.enforce_stop(job, handle, patience)
    wall_clock.set_by = step
    tasks.enforce_stop(job, handle, patience)
    assert handle.asked == []
    ticks.pass_by(tasks.KILL_AFTER + 1)
    tasks.enforce_stop(job, handle, patience)
    assert handle.asked == ["kill"]


@pytest.mark.parametrize("seconds", [-7200.0, -1.0, 1.0, 7200.0])
def test_a_process_keeps_its_name_when_the_boot_time_moves_with_the_clock(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    name = this_process()
    boot = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + seconds)
    assert process_lives(name)
    assert this_process() == name


def test_a_locked_database_silences_nobody(
    ticks: Ticks, wall_clock: WallClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another writer holds the lock no beat comes through: that is no death."""
    job = running()
    monkeypatch.setattr(silence, "database_takes_writes", lambda: False)
    for _ in range(40):
        assert jobs.reap_dead_jobs() == []
        ticks.pass_by(LOOK)
    monkeypatch.setattr(silence, "database_takes_writes", lambda: True)
    assert jobs.reap_dead_jobs() == [], "the beats that waited for the lock come first"
    job.beat()
    ticks.pass_by(silence.CONFIRM_SECONDS)
    assert jobs.reap_dead_jobs() == []


def test_a_write_that_had_to_wait_says_that_the_beats_waited_too(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(execute: Any, *call: Any) -> Any:
        ticks.pass_by(silence.PROMPT_SECONDS)
        return execute(*call)

    def locked(execute: Any, *call: Any) -> Any:
        raise OperationalError("database is locked")

    assert silence.database_takes_writes()
    with connection.execute_wrapper(slow):
        assert not silence.database_takes_writes()
    with connection.execute_wrapper(locked):
        assert not silence.database_takes_writes()


def test_a_run_whose_message_lies_in_the_future_is_not_forgotten(
    ticks: Ticks, wall_clock: WallClock, django_capture_on_commit_callbacks: Any
) -> None:
    wall_clock.set_by = timedelta(hours=5)
    make_training()
    OrmQ.objects.create(key="gpu", payload="", lock=wall_clock())
    wall_clock.set_by = timedelta(0)
    began = ticks.now
    while OrmQ.objects.count() == 1:
        with django_capture_on_commit_callbacks(execute=True):
            housekeeping.ring_forgotten_bell()
        ticks.pass_by(housekeeping.BELL_LOOK_SECONDS)
        assert ticks.now - began <= 60
