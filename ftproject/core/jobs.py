"""The abstract Job (a training or evaluation run as a row), its state machine, and the one queue of all jobs."""

import logging
import uuid
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from django.apps import apps
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Coalesce
from django.utils import timezone

from ftproject.core.errors import ConflictError
from ftproject.core.processes import process_lives, this_process
from ftproject.core.silence import SilenceWatch

logger = logging.getLogger(__name__)

# Beats come every 2 s; the contract gives 30 s to notice a death, 6 of which confirm it (`silence`).
HEARTBEAT_TTL = timedelta(seconds=20)
heartbeats = SilenceWatch(HEARTBEAT_TTL.total_seconds())
CANCELLED = "Cancelled before it started."
LONGEST_MESSAGE = 500


class Job(models.Model):
    """A unit of work for the GPU queue.

    ::

        queued --> loading_model --> preparing_data --> training | evaluating | working --> completed
          |              |                 |                    |
          |              +-----------------+--------------------+--> stopping --> completed
          |                                |                             |
          +--------------------------------+-----------------------------+--> error

    Every arrow is one conditional UPDATE that must hit one row. `completed` and `error` are terminal, except that
    `reopen_job` puts an evaluation back from `error` into the queue: its samples stand, only the missing rows are
    computed. `loading_model` and `preparing_data` may alternate (an evaluation reads its first rows before it loads).
    A job cancelled in the queue, or stopped before it made anything, ends in `error` with that reason.
    """

    class Status(models.TextChoices):
        QUEUED = "queued"
        LOADING_MODEL = "loading_model"
        PREPARING_DATA = "preparing_data"
        TRAINING = "training"
        EVALUATING = "evaluating"
        WORKING = "working"
        STOPPING = "stopping"
        COMPLETED = "completed"
        ERROR = "error"

    TERMINAL: ClassVar[frozenset[str]] = frozenset({Status.COMPLETED, Status.ERROR})
    ACTIVE: ClassVar[frozenset[str]] = frozenset(set(Status.values) - {Status.QUEUED, *TERMINAL})
    KIND: ClassVar[str]
    # Jobs that fetch or count run in a lane of their own: they must not wait behind a night of training.
    NEEDS_GPU: ClassVar[bool] = True

    status = models.CharField(max_length=16, choices=Status.choices, default=Status.QUEUED, db_index=True)
    message = models.CharField(max_length=LONGEST_MESSAGE, blank=True, default="")
    error = models.TextField(null=True, blank=True)
    warnings = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    completed_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    stop_requested_at = models.DateTimeField(null=True, blank=True)
    stopped_early = models.BooleanField(default=False)
    claim = models.CharField(max_length=32, blank=True, default="")
    # "host:pid:birth" of the process that answers for the job; a pid alone can be somebody else's after a reboot.
    supervisor = models.CharField(max_length=128, blank=True, default="")
    idempotency_key = models.CharField(max_length=200, null=True, blank=True, unique=True)
    request_sha256 = models.CharField(max_length=64, blank=True, default="")

    class Meta:
        abstract = True
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return f"{self.KIND} {self.pk} ({self.status})"

    @property
    def name(self) -> str:
        return f"{self.KIND}:{self.pk}"

    @property
    def is_terminal(self) -> bool:
        return self.status in self.TERMINAL

    @property
    def is_active(self) -> bool:
        return self.status in self.ACTIVE

    @property
    def elapsed_seconds(self) -> float | None:
        if self.started_at is None:
            return None
        return round(((self.completed_at or timezone.now()) - self.started_at).total_seconds(), 3)

    @property
    def waits_since(self) -> datetime:
        """What its place in the queue goes by."""
        return self.created_at

    def on_end(self) -> None:
        """Hook of the concrete job: publish the event of its end."""

    def advance(self, to: str, *, message: str = "", **changes: Any) -> bool:
        """Moves an active job to the next phase; False when it was stopped, ended or claimed by another meanwhile."""
        return self._update(self.ACTIVE - {self.Status.STOPPING}, status=to, message=message, **changes)

    def finish(self, to: str, **changes: Any) -> bool:
        """Ends an active job once; False when it had ended before."""
        assert to in self.TERMINAL  # noqa: S101
        if to == self.Status.ERROR and "message" not in changes:
            changes["message"] = str(changes.get("error") or "").partition("\n")[0]
        # The end and its event, both or neither: clients wait for the event.
        with transaction.atomic():
            ended = self._update(self.ACTIVE, status=to, completed_at=timezone.now(), **changes)
            if ended:
                self.on_end()
        return ended

    def note(self, **changes: Any) -> bool:
        """Writes progress onto an active job of this claim without touching its status."""
        return self._update(self.ACTIVE, **changes)

    def beat(self) -> bool:
        return self._update(self.ACTIVE, heartbeat_at=timezone.now())

    def _update(self, allowed: frozenset[str] | set[str], **changes: Any) -> bool:
        if "message" in changes:  # PostgreSQL refuses what SQLite takes
            changes["message"] = str(changes["message"])[:LONGEST_MESSAGE]
        rows = type(self)._default_manager.filter(pk=self.pk, status__in=allowed, claim=self.claim)
        hit = rows.update(**changes) == 1
        if hit:
            for name, value in changes.items():
                setattr(self, name, value)
        return hit

    @classmethod
    def active_or_newest(cls) -> Self | None:
        """What a status route shows: the running job, else the newest one."""
        active = cls._default_manager.filter(status__in=cls.ACTIVE).first()
        return active or cls._default_manager.order_by("-id").first()


def job_models() -> list[type[Job]]:
    return [model for model in apps.get_models() if issubclass(model, Job)]


def job_model(kind: str) -> type[Job]:
    return next(model for model in job_models() if kind == model.KIND)


def lane(needs_gpu: bool) -> list[type[Job]]:
    return [model for model in job_models() if needs_gpu == model.NEEDS_GPU]


def queued_jobs(*, needs_gpu: bool = True) -> list[Job]:
    """The waiting jobs of the GPU queue, or of the light lane, oldest first."""
    found = [job for model in lane(needs_gpu) for job in model._default_manager.filter(status=Job.Status.QUEUED)]
    return sorted(found, key=lambda job: (job.waits_since, job.pk))


def active_jobs(*, needs_gpu: bool = True) -> list[Job]:
    return [job for model in lane(needs_gpu) for job in model._default_manager.filter(status__in=Job.ACTIVE)]


def queue_position(job: Job) -> int | None:
    """1 for the job that is next, None when it no longer waits."""
    waiting = [(other.KIND, other.pk) for other in queued_jobs(needs_gpu=job.NEEDS_GPU)]
    return waiting.index((job.KIND, job.pk)) + 1 if (job.KIND, job.pk) in waiting else None


def must_wait(job: Job) -> bool:
    """True when the job cannot start at once because another runs or stands before it."""
    return bool(active_jobs(needs_gpu=job.NEEDS_GPU)) or queue_position(job) not in (1, None)


def enqueue_job(job: Job) -> None:
    """Tells the gpu queue that there is work; the message is only a bell, the row says what to do.

    A bell that is lost (a locked database) is rung again by the housekeeper. The light lane needs none: its thread in
    the web process looks by itself (`core.light_lane`).
    """
    from django_q.tasks import async_task

    if not job.NEEDS_GPU:
        return

    transaction.on_commit(
        lambda: async_task(
            "ftproject.core.tasks.run_next_job", cluster="gpu", task_name=job.name[:100], ack_failure=True
        ),
        # The job is committed; a client that got an error for the lost bell would start it again.
        robust=True,
    )


def claim_job(job: Job) -> bool:
    """Makes this process the one that answers for a waiting job; two can ask at once, one wins."""
    now, claim = timezone.now(), uuid.uuid4().hex
    won = (
        type(job)
        ._default_manager.filter(pk=job.pk, status=Job.Status.QUEUED)
        .update(
            status=Job.Status.LOADING_MODEL,
            claim=claim,
            started_at=job.started_at or now,
            heartbeat_at=now,
            supervisor=this_process(),
            message="Starting",
        )
    )
    job.refresh_from_db()
    return won == 1 and job.claim == claim


class _NotPassedOnError(Exception):
    """Rolls back a claim without its lease, or a lease without its claim."""


def claim_successor(done: Job, waiting: Job) -> bool:
    """Makes the process that ended one job answer for a waiting one: same claim, same supervisor, same lease.

    All of it or nothing, so that whoever kills what at any moment leaves either a waiting job or one that its
    supervisor follows. False when the job was taken or cancelled, or when somebody else wants the device.
    """
    from ftproject.core.lease import pass_lease

    now = timezone.now()
    try:
        with transaction.atomic():
            if not pass_lease(done.name, waiting.name):
                raise _NotPassedOnError
            if not (
                type(waiting)
                ._default_manager.filter(pk=waiting.pk, status=Job.Status.QUEUED)
                .update(
                    status=Job.Status.LOADING_MODEL,
                    claim=done.claim,
                    started_at=waiting.started_at or now,
                    heartbeat_at=now,
                    supervisor=done.supervisor,
                    message=f"Goes on with the model of {done.KIND} run {done.pk}",
                )
            ):
                raise _NotPassedOnError
    except _NotPassedOnError:
        return False
    waiting.refresh_from_db()
    return True


def current_job(job: Job) -> Job:
    """What a run process works on now, read afresh: the job it was started for, or one that it took up after it."""
    for model in lane(job.NEEDS_GPU):
        found = model._default_manager.filter(claim=job.claim, status__in=Job.ACTIVE).exclude(claim="").first()
        if found is not None:
            return found
    return type(job)._default_manager.filter(pk=job.pk).first() or job


def stop_job(job: Job, *, reason: str = "Stop requested") -> Job:
    """Stops an active job gracefully, or takes a waiting one out of the queue."""
    now, manager = timezone.now(), type(job)._default_manager
    if cancelled := cancel_waiting(job, now):
        return cancelled
    running = manager.filter(pk=job.pk, status__in=Job.ACTIVE)
    # Asking again must not put off the SIGTERM that follows a flag nobody heeds.
    if not running.update(
        status=Job.Status.STOPPING, stop_requested_at=Coalesce("stop_requested_at", now), message=reason
    ):
        raise ConflictError(
            f"{job.KIND.capitalize()} run {job.pk} is not running.",
            code="no_active_run",
            hint="Look at its status: it has ended already.",
        )
    return manager.get(pk=job.pk)


def cancel_waiting(job: Job, now: datetime) -> Job | None:
    """Takes a waiting job out of the queue, with the event of its end or not at all."""
    manager = type(job)._default_manager
    ended = {"status": Job.Status.ERROR, "error": CANCELLED, "message": CANCELLED, "completed_at": now}
    with transaction.atomic():
        if not manager.filter(pk=job.pk, status=Job.Status.QUEUED).update(**ended, stop_requested_at=now):
            return None
        fresh = manager.get(pk=job.pk)
        fresh.on_end()
        return fresh


def requeue_job(job: Job, *, message: str) -> bool:
    """Puts an active job of this claim back into the queue (a shutdown interrupted work that can be taken up again)."""
    changes = {
        "status": Job.Status.QUEUED,
        "claim": "",
        "supervisor": "",
        "message": message,
        "stop_requested_at": None,
    }
    return job._update(Job.ACTIVE, **changes)


def reopen_job(job: Job, *, message: str, **changes: Any) -> bool:
    """Puts a job that ended in `error` back into the queue; only for kinds whose finished work is kept row by row."""
    rows = type(job)._default_manager.filter(pk=job.pk, status=Job.Status.ERROR)
    changes = {
        "status": Job.Status.QUEUED,
        "claim": "",
        "supervisor": "",
        "message": message,
        "error": None,
        "completed_at": None,
        "stop_requested_at": None,
        "stopped_early": False,
        **changes,
    }
    if rows.update(**changes) != 1:
        return False
    job.refresh_from_db()
    return True


def reap_dead_jobs() -> list[Job]:
    """Ends jobs whose process is gone, so that no status stays `training` for ever. Returns those it ended."""
    active = [*active_jobs(), *active_jobs(needs_gpu=False)]
    heartbeats.forget_all_but({job.name for job in active})
    return [job for job in active if (reason := death_of(job)) and end_dead_job(job, reason)]


def end_dead_job(job: Job, reason: str) -> bool:
    from ftproject.core.lease import release_holder

    ended = job.finish(Job.Status.ERROR, error=reason)
    if ended:
        logger.warning("%s ended by the reaper: %s", job.name, reason)
        release_holder(job.name)
    return ended


def death_of(job: Job) -> str | None:
    """Why the job is dead, or None while it may be alive."""
    last = job.heartbeat_at or job.started_at or job.created_at
    if not process_lives(job.supervisor):
        return (
            "The process that ran it ended without a word (killed, out of memory, or a power cut; "
            f"last sign of life {_utc(last)})."
        )
    overdue = last < timezone.now() - HEARTBEAT_TTL
    if heartbeats.is_silent(job.name, (job.claim, job.heartbeat_at), overdue=overdue):
        return f"Its process stopped answering (last sign of life {_utc(last)})."
    return None


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def find_idempotent(model: type[Job], key: str | None, request_sha256: str) -> Job | None:
    """The job that an earlier request with this Idempotency-Key made; the same key with another body is a conflict."""
    if not key:
        return None
    job = model._default_manager.filter(Q(idempotency_key=key)).first()
    if job and job.request_sha256 != request_sha256:
        raise ConflictError(
            "This Idempotency-Key was used with another request body.",
            code="idempotency_key_reused",
            hint="Use a new key for a new run.",
        )
    return job
