"""How a command waits for its runs: draws their progress, and does the queue's work itself while no worker is there."""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.core.management import CommandError
from django.db import connection
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ftproject.core.errors import ConflictError
from ftproject.core.executor import get_executor
from ftproject.core.jobs import Job
from ftproject.core.queue import queue_worker_seen
from ftproject.core.tasks import drain_flag, run_next_job

POLL_SECONDS = 0.25
WORKER_LOOK_SECONDS = 2.0
INTERRUPTED = 130
FAILURES = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobKindView:
    """What the wait needs to know of a kind of job: its bar, how it is stopped, and what a stop means to the user."""

    bar: Callable[[Any], dict[str, Any]]
    stop: Callable[[Any], object]
    stop_notice: str


class JobsWait:
    """Waits until all jobs have ended. Ctrl+C stops them gracefully; a second one leaves at once."""

    def __init__(self, jobs: Mapping[str, Job], view: JobKindView, console: Console) -> None:
        self.jobs, self.view, self.console = jobs, view, console
        self.worker: threading.Thread | None = None
        self.looked_at = -WORKER_LOOK_SECONDS
        self.interrupts = self.heeded = 0
        self.failures: list[Exception] = []

    def until_ended(self) -> None:
        # Our own handler: a shell starts background jobs with SIGINT ignored, and Python then raises nothing.
        before = signal.signal(signal.SIGINT, self.count_interrupt)
        try:
            self.watch()
        finally:
            signal.signal(signal.SIGINT, before)
        if self.worker is not None:
            self.worker.join(timeout=10)

    def count_interrupt(self, *_: object) -> None:
        self.interrupts += 1
        if self.interrupts > 1:
            sys.exit(INTERRUPTED)

    def watch(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            bars = {name: progress.add_task(f"{name}: queued", total=None) for name in self.jobs}
            while not all(job.is_terminal for job in self.jobs.values()):
                self.turn(progress, bars)

    def turn(self, progress: Progress, bars: Mapping[str, TaskID]) -> None:
        self.ensure_worked_on()
        time.sleep(POLL_SECONDS)
        for name, job in self.jobs.items():
            job.refresh_from_db()
            state = self.view.bar(job)
            progress.update(bars[name], **{**state, "description": f"{name}: {state['description']}"})
        if self.interrupts > self.heeded:
            self.heeded = self.interrupts
            progress.console.print(self.view.stop_notice)
            self.stop()

    def stop(self) -> None:
        for job in self.jobs.values():
            with contextlib.suppress(ConflictError):  # it has ended meanwhile
                self.view.stop(job)
            job.refresh_from_db()

    def ensure_worked_on(self) -> None:
        if self.worker is not None and self.worker.is_alive():
            return
        if len(self.failures) >= FAILURES:
            raise CommandError(f"The queue's work fails here: {self.failures[-1]}. The runs stay queued.")
        if time.monotonic() - self.looked_at < WORKER_LOOK_SECONDS:
            return
        self.looked_at = time.monotonic()
        if not queue_worker_seen():
            # A stopped server leaves the flag until the next start; we are that start.
            drain_flag().unlink(missing_ok=True)
            last = max(self.jobs.values(), key=lambda job: job.waits_since)
            self.worker = threading.Thread(target=self.work_queue, args=(last,), name="queue-worker", daemon=True)
            self.worker.start()

    def work_queue(self, last: Job) -> None:
        """Runs waiting jobs, oldest first, until this one has ended.

        In a thread that outlives its run processes: the kernel ends a child when the thread that forked it ends.
        """
        rows = type(last)._default_manager.filter(pk=last.pk)
        try:
            while not rows.get().is_terminal and run_next_job(get_executor(last=last.name)) != "nothing to do":
                pass
        except Exception as exc:
            logger.exception("the queue's work failed, trying again")
            self.failures.append(exc)
        finally:
            connection.close()
