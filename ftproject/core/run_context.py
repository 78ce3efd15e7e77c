"""The one wrapper around all background work: beats, watches the stop flag, turns any failure into an ended row."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db import close_old_connections, connection

from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job, claim_successor, job_model, queued_jobs, requeue_job
from ftproject.core.persistence import persistently
from ftproject.core.tasks import is_draining

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
LEAVE_SECONDS = 5.0
Runner = Callable[[Any, Callable[[], bool]], None]


@dataclass(frozen=True)
class Succession:
    """How a run process goes on with the next waiting job instead of ending (docs/decisions/009).

    `fits` says whether a waiting job can use what an ended one has loaded; `enter` makes the process the next job's
    (its log, its working directory). After the end of the job named `last` nothing is taken up any more.
    """

    fits: Callable[[Job, Job], bool]
    enter: Callable[[Job], object]
    last: str = ""


class RunWatch:
    """A thread that beats for the run, learns of a stop, and ends the process when the run is no longer ours."""

    def __init__(self, job: Job, terminated: threading.Event | None = None) -> None:
        # Its own copy: the runner and this thread must not write attributes of one object.
        self.job = type(job)._default_manager.get(pk=job.pk)
        self.stop = threading.Event()
        # SIGTERM is meant for the process, whichever run it works on.
        self.terminated = terminated or threading.Event()
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="run-watch", daemon=True)

    def __enter__(self) -> "RunWatch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.thread.join(timeout=5)

    def should_stop(self) -> bool:
        return self.stop.is_set() or self.terminated.is_set()

    def watch(self) -> None:
        try:
            while not self.finished.wait(WATCH_SECONDS):
                self.look()
        finally:
            connection.close()

    def look(self) -> None:
        try:
            ours = self.job.beat()
            self.job.refresh_from_db(fields=["status"])
        except Exception:
            logger.exception("the run's row could not be reached, trying again")
            close_old_connections()
            return
        if self.job.status == Job.Status.STOPPING:
            self.stop.set()
        # The runner ends its row as its last act, so a lost row gets a moment before it counts as taken over.
        if not ours and not self.finished.wait(LEAVE_SECONDS):
            logger.error("%s was ended or taken over elsewhere: leaving", self.job.name)
            os._exit(4)


def execute(runner: Runner, kind: str, run_id: int, claim: str, succession: Succession | None = None) -> int:
    """Runs one claimed job, and those that it can take up after it.

    The exit code is 0 only when every row ended well (or went back to the queue).
    """
    mine = job_model(kind)._default_manager.filter(pk=run_id, claim=claim, status__in=Job.ACTIVE)
    job = persistently(mine.all().first)
    if job is None:
        logger.error("%s run %s is not claimed by %s: nothing done", kind, run_id, claim)
        return 4
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    worst = 0
    while job is not None:
        worst = max(worst, execute_one(runner, job, terminated))
        following = None if succession is None or terminated.is_set() else take_successor(job, succession)
        if following is not None and succession is not None:
            logger.info("%s has ended; this process goes on with %s", job.name, following.name)
            succession.enter(following)
        job = following
    return worst


def execute_one(runner: Runner, job: Job, terminated: threading.Event) -> int:
    try:
        with RunWatch(job, terminated) as watch:
            runner(job, watch.should_stop)
    except BaseException as exc:
        logger.exception("%s failed", job.name)
        reason = describe_failure(exc)
        persistently(lambda: job.finish(Job.Status.ERROR, error=reason))
    rows = type(job)._default_manager.filter(pk=job.pk)
    status = persistently(lambda: rows.values_list("status", flat=True).first())
    # A finished run may have been deleted by now; then its own copy knows how it ended.
    return 0 if (status or job.status) in {Job.Status.COMPLETED, Job.Status.QUEUED} else 1


def take_successor(done: Job, succession: Succession) -> Job | None:
    """The next job of the queue, claimed for this process, when it suits; else None, and the process ends.

    Never out of order, never after a failure (a device that failed once is not to be trusted), never when a stop, a
    shutdown or somebody's wish for the device is pending.
    """
    fresh = type(done)._default_manager.filter(pk=done.pk, status=Job.Status.COMPLETED).first()
    if fresh is None or fresh.stop_requested_at is not None or is_draining() or has_ended(succession.last):
        return None
    waiting = queued_jobs(needs_gpu=done.NEEDS_GPU)
    if not waiting or not succession.fits(fresh, waiting[0]) or not claim_successor(fresh, waiting[0]):
        return None
    # A shutdown sets its flag first and stops the active jobs after: one that began in between must not be missed.
    if is_draining():
        requeue_job(waiting[0], message="Waiting for the next start of the server")
        return None
    return waiting[0]


def has_ended(name: str) -> bool:
    kind, _, number = name.partition(":")
    return bool(name) and job_model(kind)._default_manager.filter(pk=number, status__in=Job.TERMINAL).exists()


def describe_failure(exc: BaseException) -> str:
    """The sentence for the run's `error`; the traceback is in its log."""
    if isinstance(exc, ProductError):
        return f"{exc.detail} {exc.hint}".strip()
    text = str(exc).strip()
    if isinstance(exc, MemoryError):
        return f"Out of memory. Lower the batch size or max_seq_length. {text}".strip()
    return text if getattr(exc, "is_user_facing", False) else f"{type(exc).__name__}: {text}"
