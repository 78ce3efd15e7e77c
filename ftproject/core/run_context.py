"""The one wrapper around all background work: beats, watches the stop flag, turns any failure into an ended row."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from django.db import close_old_connections, connection

from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job, job_model

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
LEAVE_SECONDS = 5.0
Runner = Callable[[Any, Callable[[], bool]], None]


class RunWatch:
    """A thread that beats for the run, learns of a stop, and ends the process when the run is no longer ours."""

    def __init__(self, job: Job) -> None:
        # Its own copy: the runner and this thread must not write attributes of one object.
        self.job = type(job)._default_manager.get(pk=job.pk)
        self.stop = threading.Event()
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="run-watch", daemon=True)

    def __enter__(self) -> "RunWatch":
        signal.signal(signal.SIGTERM, lambda *_: self.stop.set())
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.thread.join(timeout=5)

    def should_stop(self) -> bool:
        return self.stop.is_set()

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


def execute(runner: Runner, kind: str, run_id: int, claim: str) -> int:
    """Runs one claimed job; the exit code is 0 only when the row ended well (or went back to the queue)."""
    job = job_model(kind)._default_manager.filter(pk=run_id, claim=claim, status__in=Job.ACTIVE).first()
    if job is None:
        logger.error("%s run %s is not claimed by %s: nothing done", kind, run_id, claim)
        return 4
    try:
        with RunWatch(job) as watch:
            runner(job, watch.should_stop)
    except BaseException as exc:
        logger.exception("%s failed", job.name)
        job.finish(Job.Status.ERROR, error=describe_failure(exc))
    job.refresh_from_db(fields=["status"])
    return 0 if job.status in {Job.Status.COMPLETED, Job.Status.QUEUED} else 1


def describe_failure(exc: BaseException) -> str:
    """The sentence for the run's `error`; the traceback is in its log."""
    if isinstance(exc, ProductError):
        return f"{exc.detail} {exc.hint}".strip()
    text = str(exc).strip()
    if isinstance(exc, MemoryError):
        return f"Out of memory. Lower the batch size or max_seq_length. {text}".strip()
    return text if getattr(exc, "is_user_facing", False) else f"{type(exc).__name__}: {text}"
