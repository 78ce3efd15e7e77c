"""`manage.py prefetch_images`: fetches every image of a dataset into the cache, with a progress bar."""

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from rich.console import Console

from datasets_app.models import ImagePrefetch
from datasets_app.prefetch_selectors import bad_rows_csv
from datasets_app.prefetch_services import prefetch_start, prefetch_stop
from ftproject.core.commands import AuditedCommand
from ftproject.core.errors import ProductError
from ftproject.core.light_waiting import LightJobsWait
from ftproject.core.storage import publish_file
from ftproject.core.waiting import JobKindView

FAILED = 1
SHOWN = 5


def prefetch_bar(run: ImagePrefetch) -> dict[str, Any]:
    return {"description": run.status, "completed": run.current, "total": run.total}


PREFETCH_VIEW = JobKindView(
    bar=prefetch_bar,
    stop=lambda run: prefetch_stop(run=run),
    stop_notice="Stopping; what was fetched stays. Ctrl+C again leaves at once.",
)


class Command(AuditedCommand):
    help = "Fetches every image of a dataset into the cache; the exit code is 0 only when all rows were looked at."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dataset", type=int, metavar="ID", help="dataset (default: the current one)")
        parser.add_argument("--retry-failed", action="store_true", help="ask URLs again that failed a short while ago")
        parser.add_argument("--output", type=Path, metavar="FILE.csv", help="write the images that failed, by row")

    def handle(self, *args: Any, **options: Any) -> None:
        output: Path | None = options["output"]
        if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
            raise CommandError(f"{output} cannot be written: give a file in a folder that exists.")
        try:
            run, _ = prefetch_start(dataset_id=options["dataset"], retry_failed=options["retry_failed"])
        except ProductError as exc:
            raise CommandError(f"{exc.detail} {exc.hint}".strip()) from exc
        LightJobsWait({"prefetch": run}, PREFETCH_VIEW, Console(stderr=True)).until_ended()
        run.refresh_from_db()
        if run.status == run.Status.ERROR:
            raise CommandError(f"run {run.pk} failed: {run.error}")
        self.show(run)
        if output is not None:
            write_bad_rows(run, output)
        if run.stopped_early:
            sys.exit(FAILED)

    def show(self, run: ImagePrefetch) -> None:
        ready = run.num_images - run.num_failed
        self.stdout.write(f"run {run.pk}: {ready} images ready, {run.num_failed} failed, {run.current} rows")
        for bad in run.bad_images.order_by("id")[:SHOWN]:
            self.stdout.write(f"  row {bad.index}, {bad.column}: {bad.message} ({bad.code})")
        if run.num_failed > SHOWN:
            self.stdout.write(f"  and {run.num_failed - SHOWN} more")


def write_bad_rows(run: ImagePrefetch, path: Path) -> None:
    with publish_file(path.absolute()) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(bad_rows_csv(run=run))
