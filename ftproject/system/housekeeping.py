"""One quiet thread of the web process: ends dead runs, rings the queue's bell again, lets the model server leave."""

import logging
import threading
import time
from collections.abc import Callable

from django.conf import settings
from django.db import close_old_connections
from django.utils import timezone

from ftproject.core.audit import prune_audit, store_waiting
from ftproject.core.events import prune_events
from ftproject.core.jobs import active_jobs, enqueue_job, queued_jobs, reap_dead_jobs
from ftproject.core.light_lane import run_light_jobs
from ftproject.core.silence import CONFIRM_SECONDS, SilenceWatch
from inference_app.model_server import model_server

logger = logging.getLogger(__name__)

REAP_SECONDS = 3.0
BELL_SECONDS = 30.0
BELL_LOOK_SECONDS = 5.0
PRUNE_SECONDS = 3600.0
LIGHT_LANE_SECONDS = 0.3
forgotten_bells = SilenceWatch(BELL_SECONDS - CONFIRM_SECONDS)


class Housekeeper:
    """Not on the gpu queue, where it would wait behind the very run that died."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        # PDEATHSIG of a run process is tied to the thread that started it, so this one lives as long as the process.
        self.light_lane = threading.Thread(target=self.run_light_lane, name="light-lane", daemon=True)
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def ensure_started(self) -> None:
        if self.thread is not None:
            return
        with self.lock:
            if self.thread is None:
                self.thread = threading.Thread(target=self.run, name="housekeeper", daemon=True)
                self.thread.start()
                self.light_lane.start()

    def stop(self) -> None:
        self.stopping.set()

    def run(self) -> None:
        due: dict[str, float] = {}
        while not self.stopping.wait(0.5):
            for name, period, duty in self.duties():
                if time.monotonic() >= due.get(name, 0.0):
                    due[name] = time.monotonic() + period
                    run_duty(name, duty)

    def run_light_lane(self) -> None:
        while not self.stopping.wait(LIGHT_LANE_SECONDS):
            run_duty("light lane", run_light_jobs)

    def duties(self) -> list[tuple[str, float, Callable[[], object]]]:
        return [
            ("model server", 0.0, model_server.tend),
            ("reaper", REAP_SECONDS, reap_dead_jobs),
            ("bell", BELL_LOOK_SECONDS, ring_forgotten_bell),
            ("pruning", PRUNE_SECONDS, prune_events),
            ("audit trail", REAP_SECONDS, store_waiting),
            ("pruning the audit trail", PRUNE_SECONDS, prune_audit),
        ]


def run_duty(name: str, duty: Callable[[], object]) -> None:
    try:
        close_old_connections()
        duty()
    except Exception:
        # A locked or restarting database must not end the only thread that notices dead runs.
        logger.exception("housekeeping: %s failed, trying again", name)


def ring_forgotten_bell() -> None:
    """Enqueues again when jobs wait and nothing runs: a killed cluster takes its prefetched messages with it."""
    from django_q.models import OrmQ

    waiting = [] if active_jobs() else queued_jobs()
    forgotten = forgotten_bells.is_silent("queue", waiting[0].name if waiting else "", overdue=False)
    # A message is locked until its time; after the clock was set back that may be hours ahead.
    audible = OrmQ.objects.filter(key=settings.GPU_CLUSTER, lock__lte=timezone.now())
    if waiting and forgotten and not audible.exists():
        forgotten_bells.forget_all_but(set())
        enqueue_job(waiting[0])


housekeeper = Housekeeper()
