"""What the gpu queue runs: claim the oldest waiting job, hold the lease, watch its run process, settle the row."""

import logging
import time
from pathlib import Path

from django.db import Error, close_old_connections

from ftproject.core.executor import Executor, RunHandle, get_executor
from ftproject.core.jobs import Job, claim_job, current_job, queued_jobs, reap_dead_jobs
from ftproject.core.lease import acquire_lease, beat_lease, release_lease, want_lease
from ftproject.core.persistence import persistently
from ftproject.core.storage import data_path

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
BEAT_SECONDS = 2.0
# A stop flag that the process does not heed (a hung loader, say) becomes SIGTERM, then SIGKILL.
TERMINATE_AFTER = 120.0
KILL_AFTER = 150.0
LOG_LINES = 20
clock = time.monotonic


class StopPatience:
    """How long a job has known that it is to stop, by a clock that nobody can set.

    By the row's own time a step of the wall clock killed a run in the middle of saving its adapter.
    """

    def __init__(self) -> None:
        self.known_since: dict[str, float] = {}

    def waited(self, job: Job) -> float:
        return clock() - self.known_since.setdefault(job.name, clock())


def run_next_job(executor: Executor | None = None) -> str:
    """Runs one job to its end, and those that its process takes up after it (`run_context.Succession`).

    Harmless when the queue delivers twice: a second caller finds nothing to claim.
    """
    reap_dead_jobs()
    taken = take_next_job()
    if taken is None:
        return "nothing to do"
    job, token = taken
    try:
        job = supervise(job, token, executor or get_executor())
    finally:
        persistently(lambda: release_lease(token))
    return f"{job.name} {job.status}"


def take_next_job() -> tuple[Job, str] | None:
    """Waits for the device, then claims the oldest job that still waits; the job stays `queued` until both are ours."""
    while not is_draining() and (waiting := queued_jobs()):
        job = waiting[0]
        token = acquire_lease(job.name)
        if token is None:
            want_lease(job.name)
            time.sleep(POLL_SECONDS)
        elif claim_job(job):
            return job, token
        else:
            release_lease(token)
    return None


def is_draining() -> bool:
    """True from Ctrl+C until the next start: django-q2 runs prefetched tasks even after SIGTERM."""
    return drain_flag().exists()


def drain_flag() -> Path:
    return data_path("run", "draining")


def stopped_by_shutdown(job: Job) -> bool:
    """A user's stop came before the server's; with a bare SIGTERM there is none in the row."""
    job.refresh_from_db(fields=["stop_requested_at"])
    try:
        draining_since = drain_flag().stat().st_mtime
    except FileNotFoundError:
        return False
    return job.stop_requested_at is None or job.stop_requested_at.timestamp() >= draining_since


def supervise(job: Job, token: str | None, executor: Executor) -> Job:
    """Starts the job's process, watches it to its end, and settles what it was working on; gives that job back."""
    try:
        handle = executor.submit(job.KIND, job.pk, job.claim)
    except OSError as exc:
        job.finish(Job.Status.ERROR, error=f"The run process could not be started: {exc}")
        raise
    try:
        watch(job, token, handle)
    finally:
        handle.close()
    return persistently(lambda: settle(job, handle.poll(), executor))


def watch(job: Job, token: str | None, handle: RunHandle) -> None:
    """Beats for the job in work until the process has ended, and ends one that does not heed the stop flag."""
    beat_at, patience = 0.0, StopPatience()
    while handle.poll() is None:
        if time.monotonic() - beat_at >= BEAT_SECONDS:
            beat_at = time.monotonic()
            beat(job, token, handle, patience)
        time.sleep(POLL_SECONDS)


def beat(job: Job, token: str | None, handle: RunHandle, patience: StopPatience) -> None:
    """One beat; a database that does not answer for a moment must not end the run that this process watches."""
    try:
        if token is not None:
            beat_lease(token)
        working_on = current_job(job)
        working_on.beat()
        enforce_stop(working_on, handle, patience)
    except Error:
        logger.warning("%s: the database did not answer, trying again", job.name, exc_info=True)
        close_old_connections()


def enforce_stop(job: Job, handle: RunHandle, patience: StopPatience) -> None:
    """A process whose job is to be stopped takes up no other, so the signal can hit no job but this."""
    if job.stop_requested_at is None:
        return
    waited = patience.waited(job)
    if waited > KILL_AFTER:
        handle.kill()
    elif waited > TERMINATE_AFTER:
        handle.terminate()


def settle(job: Job, exit_code: int | None, executor: Executor) -> Job:
    """The process has ended: a row that it did not end itself becomes `error` with the reason and its last words."""
    job = current_job(job)
    if not job.is_active:
        return job
    reason = f"The run process ended {describe_exit(exit_code)}."
    last_words = executor.logs(job.KIND, job.pk, LOG_LINES).strip()
    job.finish(Job.Status.ERROR, error=f"{reason}\n{last_words}" if last_words else reason)
    return job


def describe_exit(exit_code: int | None) -> str:
    if exit_code is None:
        return "without an exit code"
    if exit_code == -9:
        return "by SIGKILL (out of memory, or killed by hand)"
    if exit_code < 0:
        return f"by signal {-exit_code}"
    return f"with exit code {exit_code}"
