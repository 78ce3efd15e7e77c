"""How the command waits for its preflight: draws the progress, and runs it itself when no server takes it."""

import sys
import threading
import time

from django.db import connection
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from datasets_app.models import PreflightRun
from datasets_app.preflight_services import preflight_stop
from ftproject.core.errors import ConflictError
from ftproject.core.executor import get_executor
from ftproject.core.jobs import Job, claim_job
from ftproject.core.tasks import drain_flag, supervise

POLL_SECONDS = 0.2
# A server's lane looks every 0.3 s; after so long nobody will take it, or others stand before it.
PATIENCE_SECONDS = 1.5
INTERRUPTED = 130


class PreflightWait:
    """Ctrl+C stops it; a second one leaves at once."""

    def __init__(self, run: PreflightRun, console: Console) -> None:
        self.run, self.console = run, console
        self.worker: threading.Thread | None = None
        self.began = time.monotonic()
        self.interrupted = False

    def until_ended(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task("preflight: queued", total=self.run.dataset.num_rows)
            while not self.run.is_terminal:
                self.turn()
                words = f"preflight: {self.run.message or self.run.status}"
                progress.update(bar, description=words, completed=self.run.current_row)
        if self.worker is not None:
            self.worker.join(timeout=10)

    def turn(self) -> None:
        try:
            self.ensure_worked_on()
            time.sleep(POLL_SECONDS)
            self.run.refresh_from_db()
        except KeyboardInterrupt:
            if self.interrupted:
                sys.exit(INTERRUPTED)
            self.interrupted = True
            self.stop()

    def stop(self) -> None:
        try:
            preflight_stop(run=self.run)
        except ConflictError:  # it has ended meanwhile
            return

    def ensure_worked_on(self) -> None:
        waits = self.worker is None and self.run.status == Job.Status.QUEUED
        if waits and time.monotonic() - self.began >= PATIENCE_SECONDS and claim_job(self.run):
            # A stopped server leaves the flag until the next start; we are that start.
            drain_flag().unlink(missing_ok=True)
            self.worker = threading.Thread(target=work_on, args=(self.run.pk,), name="preflight", daemon=True)
            self.worker.start()


def work_on(run_id: int) -> None:
    """In a thread that outlives its run process: the kernel ends a child when the thread that forked it ends."""
    try:
        supervise(PreflightRun.objects.get(pk=run_id), None, get_executor())
    finally:
        connection.close()
