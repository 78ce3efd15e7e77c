"""`manage.py merge_adapter`: one merge through the API's own services, with a progress bar and a truthful exit code."""

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from rich.console import Console

from ftproject.core.commands import AuditedCommand
from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job, queue_position
from ftproject.core.waiting import JobKindView, JobsWait
from training_app.management.commands.train import FAILED, describe
from training_app.merge_services import SUFFIX, merge_start, merge_stop
from training_app.models import AdapterMerge
from training_app.selectors import find_adapter


class Command(AuditedCommand):
    help = "Merges an adapter into its base; the exit code is 0 only when the 16-bit model is there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("adapter", help="name, path or id")
        parser.add_argument("--name", metavar="MODEL", help=f"name of the model (default: the adapter's with {SUFFIX})")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            started = merge_start(adapter=find_adapter(reference=options["adapter"]), model_name=options["name"])
        except ProductError as error:
            raise CommandError(describe(error)) from error
        merge = started.merge
        self.stdout.write(f"Merge {merge.pk}: {merge.adapter_name} into {merge.base_model_name}")
        JobsWait({"merge": merge}, MERGE_VIEW, Console(stderr=True)).until_ended()
        self.conclude(merge)

    def conclude(self, merge: AdapterMerge) -> None:
        for warning in merge.warnings:
            self.stderr.write(f"Note: {warning}")
        if merge.status != Job.Status.COMPLETED:
            self.stderr.write(self.style.ERROR(f"Merge {merge.pk} failed: {merge.error or merge.message}"))
            sys.exit(FAILED)
        self.stdout.write(str(merge.path))


def bar_state(merge: AdapterMerge) -> dict[str, Any]:
    position = queue_position(merge) if merge.status == Job.Status.QUEUED else None
    place = f" (place {position})" if position else ""
    return {"description": f"{merge.status}{place}", "completed": merge.current, "total": merge.total}


MERGE_VIEW = JobKindView(
    bar=bar_state,
    stop=lambda merge: merge_stop(merge=merge),
    stop_notice="Stopping; nothing of the merge is kept. Ctrl+C again leaves at once.",
)
