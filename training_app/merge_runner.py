"""What a merge's run process does: base and adapter become one model folder, tensor by tensor, stoppable throughout."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ftproject.core.errors import ConflictError, ProductError
from ftproject.core.jobs import Job, requeue_job
from ftproject.core.persistence import persistently
from ftproject.core.tasks import is_draining
from ftproject.engine.adapters import finite
from ftproject.engine.backends.base import EngineError
from ftproject.engine.merging import MergeResult, merge_adapter
from training_app.adapter_services import RunLostError
from training_app.disk import says_disk_full
from training_app.merge_services import base_path
from training_app.models import AdapterMerge

TELL_SECONDS = 1.0
STOPPED = "merge_stopped"
DISK_FULL = "The disk is full: nothing of the merge was kept."


class MergeFailedError(ProductError):
    """A merge that cannot go on, with the sentence for its `error`."""

    default_code = "merge_failed"


def execute_merge(job: AdapterMerge, should_stop: Callable[[], bool]) -> None:
    """Merges; a stop leaves nothing, a shutdown puts the merge back into the queue."""
    job.advance(Job.Status.WORKING, message=f"Merging {job.adapter_name} into {job.base_model_name}", current=0)
    job.publish_status()
    progress = MergeProgress(job)
    try:
        result = merged(job, progress.on_progress, should_stop)
    except EngineError as exc:
        if exc.code == STOPPED and is_draining() and requeue_job(job, message="Interrupted by a shutdown"):
            return
        raise MergeFailedError(f"{exc.message[:1].upper()}{exc.message[1:]}.", code=exc.code) from exc
    except Exception as exc:
        if says_disk_full(exc):
            raise MergeFailedError(DISK_FULL, code="disk_full", hint="Free space, then merge again.") from exc
        raise
    finish(job, result)


def merged(
    job: AdapterMerge, on_progress: Callable[[int, int, str], None], should_stop: Callable[[], bool]
) -> MergeResult:
    adapter = job.adapter
    if adapter is None:  # deleting it is refused while a merge waits; somebody removed the row by hand
        raise ConflictError(f"The adapter {job.adapter_name} is gone.", code="adapter_not_found")
    facts = {"merge_id": job.pk, "adapter": adapter.name, "adapter_sha256": adapter.sha256}
    return merge_adapter(
        adapter.path,
        base_path(adapter),
        job.path,
        provenance=facts | {"base_model_name": adapter.base_model_name},
        on_progress=on_progress,
        should_stop=should_stop,
    )


def finish(job: AdapterMerge, result: MergeResult) -> None:
    """Ends the merge with its model; a model whose merge was ended elsewhere is taken away again."""
    facts = finite({name: value for name, value in asdict(result).items() if name not in {"path", "warnings"}})
    changes: dict[str, Any] = {"result": facts, "warnings": [*job.warnings, *result.warnings]}
    message = f"Merged into {job.model_name}"
    if not persistently(lambda: complete(job, message=message, current=job.total or 0, **changes)):
        shutil.rmtree(result.path, ignore_errors=True)
        raise RunLostError(f"The merge was ended elsewhere before {job.model_name} was complete.")


def complete(job: AdapterMerge, **changes: Any) -> bool:
    """True as well when an earlier attempt did it whose connection broke while it committed."""
    mine = AdapterMerge.objects.filter(pk=job.pk, claim=job.claim, status=Job.Status.COMPLETED)
    return mine.exists() or job.finish(Job.Status.COMPLETED, **changes)


class MergeProgress:
    """Writes how far the merge is onto its row and into the event table, once a second at most."""

    def __init__(self, job: AdapterMerge) -> None:
        self.job = job
        self.told_at = time.monotonic()

    def on_progress(self, done: int, total: int, message: str) -> None:
        if time.monotonic() - self.told_at < TELL_SECONDS and done < total:
            return
        self.told_at = time.monotonic()
        text = f"{message[:1].upper()}{message[1:]}"[:500]
        persistently(lambda: self.job.note(current=done, total=total, message=text))
        persistently(self.job.publish_status)
