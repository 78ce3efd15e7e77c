"""Waits for queued runs and draws their progress; does the queue's work itself while no queue worker is there."""

import sys
import threading
import time
from collections.abc import Mapping

from django.db import connection
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from evaluation_app.models import EvaluationRun
from evaluation_app.services import stop_evaluation
from ftproject.core.errors import ConflictError
from ftproject.core.queue import queue_worker_seen
from ftproject.core.tasks import drain_flag, run_next_job

POLL_SECONDS = 0.25
WORKER_LOOK_SECONDS = 2.0
INTERRUPTED = 130


class RunsWait:
    """Ctrl+C stops the runs and keeps their samples; a second one leaves at once."""

    def __init__(self, runs: Mapping[str, EvaluationRun], console: Console) -> None:
        self.runs, self.console = runs, console
        self.worker: threading.Thread | None = None
        self.looked_at = -WORKER_LOOK_SECONDS
        self.interrupted = False

    def until_ended(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            bars = {name: progress.add_task(f"{name}: queued", total=run.total) for name, run in self.runs.items()}
            while not all(run.is_terminal for run in self.runs.values()):
                self.turn(progress, bars)
        if self.worker is not None:
            self.worker.join(timeout=10)

    def turn(self, progress: Progress, bars: Mapping[str, TaskID]) -> None:
        try:
            self.ensure_worked_on()
            time.sleep(POLL_SECONDS)
            for name, run in self.runs.items():
                run.refresh_from_db()
                progress.update(bars[name], description=f"{name}: {run.status}", total=run.total, completed=run.current)
        except KeyboardInterrupt:
            if self.interrupted:
                sys.exit(INTERRUPTED)
            self.interrupted = True
            self.console.print("Stopping after this batch; Ctrl+C again leaves at once.")
            self.stop()

    def stop(self) -> None:
        for run in self.runs.values():
            try:
                stop_evaluation(run=run)
            except ConflictError:  # it has ended meanwhile
                continue

    def ensure_worked_on(self) -> None:
        if self.worker is not None and self.worker.is_alive():
            return
        if time.monotonic() - self.looked_at < WORKER_LOOK_SECONDS:
            return
        self.looked_at = time.monotonic()
        if not queue_worker_seen():
            # A stopped server leaves the flag until the next start; we are that start.
            drain_flag().unlink(missing_ok=True)
            last = max(run.pk for run in self.runs.values())
            self.worker = threading.Thread(target=work_queue, args=(last,), name="queue-worker", daemon=True)
            self.worker.start()


def work_queue(last_run_id: int) -> None:
    """Runs waiting jobs, oldest first, until our last one has ended.

    In a thread that outlives its run processes: the kernel ends a child when the thread that forked it ends.
    """
    try:
        ours = EvaluationRun.objects.filter(pk=last_run_id)
        while not ours.get().is_terminal and run_next_job() != "nothing to do":
            pass
    finally:
        connection.close()
