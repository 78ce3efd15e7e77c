"""`manage.py preflight`: looks at every row as a training would, and prints what it found."""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from rich.console import Console

from datasets_app.models import PreflightRun
from datasets_app.preflight.wait import PreflightWait
from datasets_app.preflight_report_text import print_report
from datasets_app.preflight_services import preflight_start
from ftproject.core.commands import AuditedCommand
from ftproject.core.config_files import read_config_file
from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job

FAILED = 1


class Command(AuditedCommand):
    help = "Looks at every row before any GPU time; the exit code is 0 only when something can be trained."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dataset", type=int, metavar="ID", help="dataset to look at (default: the current one)")
        parser.add_argument(
            "--config", type=Path, metavar="FILE", help="JSON or YAML like the body of POST /api/training/start"
        )
        parser.add_argument("--json", action="store_true", help="print the report as JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            run = started_run(options).run
        except ProductError as exc:
            raise CommandError(describe(exc)) from exc
        PreflightWait(run, Console(stderr=True)).until_ended()
        self.conclude(run, as_json=options["json"])

    def conclude(self, run: PreflightRun, *, as_json: bool) -> None:
        if run.status != Job.Status.COMPLETED or run.report is None:
            self.stderr.write(self.style.ERROR(f"Preflight {run.pk} made no report: {run.error}"))
            sys.exit(FAILED)
        if as_json:
            self.stdout.write(json.dumps(run.report, indent=2, ensure_ascii=False))
        else:
            print_report(run.report, Console(file=self.stdout))  # type: ignore[arg-type]  # Django's wrapper writes text
        if not run.report["can_train"]:
            sys.exit(FAILED)


def started_run(options: dict[str, Any]) -> Any:
    body = read_config_file(options["config"]) if options["config"] else {}
    named = body.pop("dataset_id", None)
    body.pop("dry_run", None)
    return preflight_start(dataset_id=options["dataset"] or named, body=body)


def describe(error: ProductError) -> str:
    lines = [error.detail, *(f"  {item.field or item.row}: {item.message}" for item in error.errors), error.hint]
    return "\n".join(line for line in lines if line)
