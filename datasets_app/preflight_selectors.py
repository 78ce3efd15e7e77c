"""Reads of preflights."""

from datasets_app.models import PreflightRun
from datasets_app.preflight.estimates import free_disk_mb
from ftproject.core.errors import NotFoundError
from ftproject.core.jobs import Job


def get_preflight(*, run_id: int) -> PreflightRun:
    run = PreflightRun.objects.filter(pk=run_id).first()
    if run is None:
        detail = f"There is no preflight {run_id}."
        raise NotFoundError(detail, code="run_not_found", hint="POST /api/datasets/preflight makes one.")
    return run


def reusable_preflight(*, fingerprint: str) -> PreflightRun | None:
    """The newest preflight of the same, under way or done, whose report cannot have changed since."""
    alike = PreflightRun.objects.filter(fingerprint=fingerprint).exclude(
        status__in=[Job.Status.ERROR, Job.Status.STOPPING]
    )
    newest = alike.order_by("-id").first()
    return newest if newest and (not newest.is_terminal or still_true(newest)) else None


def still_true(run: PreflightRun) -> bool:
    """Images that were missing or failed may be there by now, and the disk may have filled."""
    report = run.report or {}
    images = report["images"]
    room = free_disk_mb() >= report["disk"]["wanted_free_mb"]
    return not images["failed"] and not images["not_fetched"]["images"] and room == report["disk"]["enough"]
