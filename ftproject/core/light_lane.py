"""The light lane: one thread of the web process runs jobs that need no GPU (prefetch, preflight), one after the other.

A second django-q2 cluster would do the same with five more processes and 100 MB.
"""

import logging
import math
import time

from ftproject.core.executor import Executor, get_executor
from ftproject.core.jobs import claim_job, queued_jobs
from ftproject.core.tasks import is_draining, supervise

logger = logging.getLogger(__name__)

IDLE_SECONDS = 2.0
_looked_at = [-math.inf]


def run_light_jobs(executor: Executor | None = None) -> int:
    """Runs the waiting light jobs, oldest first, each in a run process of its own; returns how many."""
    done = 0
    while not is_draining() and (waiting := queued_jobs(needs_gpu=False)):
        if claim_job(waiting[0]):
            supervise(waiting[0], None, executor or get_executor())
            done += 1
    _looked_at[0] = time.monotonic()
    return done


def light_lane_is_idle() -> bool:
    """Whether a lane of this process looked for work a moment ago and found none."""
    return time.monotonic() - _looked_at[0] < IDLE_SECONDS
