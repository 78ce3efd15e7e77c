"""How a command waits for a light job: runs it at once in a process of its own unless a server's light lane has it."""

import threading

from django.db import connection

from ftproject.core.executor import get_executor
from ftproject.core.jobs import Job, claim_job
from ftproject.core.queue import queue_worker_seen
from ftproject.core.tasks import drain_flag, supervise
from ftproject.core.waiting import JobsWait


class LightJobsWait(JobsWait):
    def ensure_worked_on(self) -> None:
        """Once: a job that two sides want to claim is claimed by one of them."""
        if self.worker is not None:
            return
        if not queue_worker_seen():
            # A stopped server leaves the flag until the next start; we are that start.
            drain_flag().unlink(missing_ok=True)
        jobs = [type(job)._default_manager.get(pk=job.pk) for job in self.jobs.values()]
        self.worker = threading.Thread(target=work_on, args=(jobs,), name="light-jobs", daemon=True)
        self.worker.start()


def work_on(jobs: list[Job]) -> None:
    """In a thread that outlives the run process: the kernel ends a child when the thread that forked it ends."""
    try:
        for job in jobs:
            if claim_job(job):
                supervise(job, None, get_executor())
    finally:
        connection.close()
