"""`manage.py doctor`: examines the data directory and the machine; exit code 1 when something is wrong."""

import json
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from rich.console import Console
from rich.text import Text

from ftproject.core.commands import AuditedCommand
from ftproject.system.doctor.examination import examine, fix
from ftproject.system.doctor.findings import Finding

STYLES = {"error": "red", "warning": "yellow", "info": "cyan"}


class Command(AuditedCommand):
    help = "Examines the data directory and the machine, and says for each finding what to do. Safe beside a server."
    requires_system_checks: tuple[str, ...] = ()  # a data directory that is not writable is a finding, not an abort

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--fix", action="store_true", help="do what is safe: nothing that was saved is lost")
        parser.add_argument("--json", action="store_true", help="for programs: {data_dir, ok, findings, fixed}")

    def changes_something(self, options: dict[str, Any]) -> bool:
        return bool(options["fix"])

    def handle(self, *args: Any, **options: Any) -> None:
        findings = list(examine())
        fixed = fix(findings) if options["fix"] else []
        if fixed:
            findings = list(examine())
        if options["json"]:
            self.print_json(findings, fixed)
        else:
            self.print_text(findings, fixed)
        if has_errors(findings):
            sys.exit(1)

    def print_json(self, findings: list[Finding], fixed: list[str]) -> None:
        said = {
            "data_dir": str(settings.DATA_DIR),
            "ok": not has_errors(findings),
            "findings": [finding.as_dict() for finding in findings],
            "fixed": fixed,
        }
        self.stdout.write(json.dumps(said, indent=2, ensure_ascii=False))

    def print_text(self, findings: list[Finding], fixed: list[str]) -> None:
        console = Console(file=self.stdout, highlight=False, soft_wrap=True)  # type: ignore[arg-type]  # Django's wrapper writes text
        for line in fixed:
            console.print(f"fixed: {line}", markup=False)
        for finding in findings:
            console.print(Text(finding.level, STYLES[finding.level]) + Text(f" {finding.code}: {finding.message}"))
            if finding.remedy:
                console.print(f"    -> {finding.remedy}", markup=False)
        errors = sum(finding.level == "error" for finding in findings)
        fixable = sum(finding.fix is not None for finding in findings)
        more = f" {fixable} can be fixed by --fix." if fixable else ""
        verdict = f"{errors} errors." if errors else "Nothing is wrong."
        console.print(f"{settings.DATA_DIR}: {verdict}{more}", markup=False)


def has_errors(findings: list[Finding]) -> bool:
    return any(finding.level == "error" for finding in findings)
