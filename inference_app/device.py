"""The GPU lease as inference sees it: takes it for the model server, and says who has it when it is taken."""

import math
import os
import socket

from ftproject.core.errors import ConflictError
from ftproject.core.jobs import Job, active_jobs, job_models, queued_jobs
from ftproject.core.lease import acquire_lease, lease_holder
from ftproject.core.processes import birth_of

HOLDER_PREFIX = "inference:"
RETRY_SECONDS = 30  # when nobody can say how long
LONGEST_RETRY_SECONDS = 3600


def this_holder() -> str:
    """The model server's name in the lease: host, pid and birth of the web process, cut to the column's length."""
    return f"{HOLDER_PREFIX}{socket.gethostname()[:25]}:{os.getpid()}:{birth_of(os.getpid())}"


def take_device() -> str | None:
    """The lease's token, or None while somebody else has the device.

    A killed web process cannot give the lease back; its name says that it is gone, so nobody waits until it runs out.
    A request that waits comes here four times a second, so it only reads until the device is free.
    """
    return None if lease_holder() else acquire_lease(this_holder())


def gpu_busy() -> ConflictError:
    """409 with the run that has the device, its estimate of the time left, and when to try again."""
    job = busy_job()
    if job is None:
        return ConflictError(
            "Another server process holds the GPU.",
            code="gpu_busy",
            hint="Try again when it has left, or send wait_seconds.",
            headers={"Retry-After": str(RETRY_SECONDS)},
            extra={"run_kind": None, "run_id": None, "eta_seconds": None},
        )
    eta = eta_seconds(job)
    words = f", about {math.ceil(eta)} s left" if eta is not None else ""
    return ConflictError(
        f"{job.KIND.capitalize()} run {job.pk} has the GPU ({job.status}{words}).",
        code="gpu_busy",
        hint="Try again after Retry-After, stop the run, or send wait_seconds (up to 600) to wait for it.",
        headers={"Retry-After": str(retry_after(eta))},
        extra={"run_kind": job.KIND, "run_id": job.pk, "eta_seconds": eta},
    )


def run_is_leaving() -> bool:
    """True while the device is held for a run that has ended and whose process is about to be gone."""
    job = busy_job()
    return job is not None and job.is_terminal


def busy_job() -> Job | None:
    """The run that has the device, else the one that is about to take it."""
    kind, _, number = lease_holder().partition(":")
    for model in job_models():
        if kind == model.KIND and number.isdecimal():
            return model._default_manager.filter(pk=int(number)).first()
    return next(iter([*active_jobs(), *queued_jobs()]), None)


def eta_seconds(job: Job) -> float | None:
    """The run's own estimate, else from how many of its rows are done; None when nobody knows."""
    own: float | None = getattr(job, "eta_seconds", None)
    if own is not None:
        return own if math.isfinite(own) else None
    done, total = getattr(job, "current", 0), getattr(job, "total", None)
    if not done or not total or job.elapsed_seconds is None:
        return None
    return float(round(job.elapsed_seconds / done * max(0, total - done), 1))


def retry_after(eta: float | None) -> int:
    return RETRY_SECONDS if eta is None else max(1, min(LONGEST_RETRY_SECONDS, math.ceil(eta)))
