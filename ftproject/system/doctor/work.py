"""Looks at what should be going on: runs without a process, a queue without a worker, locks that nobody holds."""

from collections.abc import Iterator
from functools import partial

from django.conf import settings
from django.utils import timezone
from django_q.models import OrmQ

from ftproject.core.jobs import Job, active_jobs, death_of, end_dead_job, job_models, queued_jobs
from ftproject.core.lease import LEASE_PK, release_holder
from ftproject.core.models import GpuLease
from ftproject.core.processes import process_lives
from ftproject.core.queue import living_clusters
from ftproject.core.tasks import drain_flag
from ftproject.system.doctor.findings import Finding
from ftproject.system.serving import holder_of_data, ring_bells


def check_server() -> Iterator[Finding]:
    holder, clusters = holder_of_data(), living_clusters()
    if holder is not None:
        yield Finding("info", "server_runs", f"A server runs on this data directory: {holder}.")
    if len(clusters) > 1:
        pids = ", ".join(str(cluster.pid) for cluster in clusters)
        message = f"{len(clusters)} gpu clusters work on this queue (processes {pids})."
        remedy = "End all but one. Runs are still executed once and one at a time; the others only wait."
        yield Finding("warning", "several_clusters", message, remedy)
    if holder is not None and not clusters:
        remedy = "Look at the server's output; it starts a queue that died again. Else restart the server."
        yield Finding("error", "queue_dead", "A server runs, but nobody works on its queue.", remedy)
    waiting = queued_jobs()
    if waiting and holder is None and not clusters:
        names = ", ".join(job.name for job in waiting[:5])
        remedy = "Start the server: it begins with them."
        yield Finding("info", "runs_wait", f"{len(waiting)} runs wait for the next start ({names}).", remedy)


def check_runs() -> Iterator[Finding]:
    for job in [*active_jobs(), *active_jobs(needs_gpu=False)]:
        reason = death_of(job)
        if reason is not None:
            message = f"{job.name} is `{job.status}`, but dead: {reason}"
            remedy = "The next start of the server ends it in `error`; then it can be resumed."
            yield Finding("error", "run_stuck", message, remedy, partial(end, job, reason))


def end(job: Job, reason: str) -> str:
    return f"{job.name} is ended." if end_dead_job(job, reason) else f"{job.name} had ended."


def check_lease() -> Iterator[Finding]:
    row = GpuLease.objects.filter(pk=LEASE_PK).exclude(holder="").first()
    if row is None:
        return
    kind, _, rest = row.holder.partition(":")
    gone = not process_lives(rest) if ":" in rest else not holds_a_run(kind, rest)
    if gone:
        remedy = "It is taken over by whoever wants it next, after half a minute."
        yield Finding(
            "warning", "lease_stale", f"The GPU is held by {row.holder}, which is gone.", remedy, partial(free, row)
        )


def holds_a_run(kind: str, number: str) -> bool:
    """Also while the run waits: the device is taken before the run is claimed."""
    for model in job_models():
        if kind == model.KIND and number.isdecimal():
            return model._default_manager.filter(pk=int(number)).exclude(status__in=model.TERMINAL).exists()
    return False


def free(row: GpuLease) -> str:
    release_holder(row.holder)
    return "The GPU is free."


def check_messages() -> Iterator[Finding]:
    messages = OrmQ.objects.filter(key=settings.GPU_CLUSTER)
    if not queued_jobs() and not active_jobs() and messages.exists():
        message = f"{messages.count()} messages of the queue speak of runs that have ended."
        remedy = "They do no harm: whoever gets one finds nothing to do."
        yield Finding("warning", "messages_stale", message, remedy, ring_anew)
    elif holder_of_data() is None and queued_jobs() and not messages.filter(lock__lte=timezone.now()).exists():
        remedy = "The next start of the server rings for them."
        yield Finding("info", "no_bell", "Runs wait, and no message tells the queue of them.", remedy)


def ring_anew() -> str:
    ring_bells()
    return "The queue's messages are those of the waiting runs."


def check_flags() -> Iterator[Finding]:
    if holder_of_data() is None and not active_jobs() and drain_flag().exists():
        message = "A server that was killed while it ended has left its flag: no run begins."
        yield Finding("warning", "draining", message, "The next start of the server removes it.", stop_draining)


def stop_draining() -> str:
    drain_flag().unlink(missing_ok=True)
    return "The flag is removed."
