"""The base of every command that changes what is stored: its call leaves an audit entry, however it ends."""

import re
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ftproject.core.audit import os_user, record_write
from ftproject.core.callers import Caller
from ftproject.core.models import AuditEntry

# Django's own options of every command; they say nothing about what it did.
PLUMBING = frozenset(
    {"verbosity", "settings", "pythonpath", "traceback", "no_color", "force_color", "skip_checks", "stdout", "stderr"}
)

CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class AuditedCommand(BaseCommand):
    def changes_something(self, options: dict[str, Any]) -> bool:
        """False for a call that only looks."""
        return True

    def execute(self, *args: Any, **options: Any) -> str | None:
        status = 1
        try:
            output = super().execute(*args, **options)
            status = 0
        except CommandError as error:
            status = error.returncode
            raise
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            raise
        finally:
            if self.changes_something(options):
                record_command(type(self).__module__.rpartition(".")[2], options, status)
        return output


def record_command(name: str, options: dict[str, Any], status: int) -> None:
    given = {
        key: without_credentials(value)
        for key, value in options.items()
        if key not in PLUMBING and value not in (None, False, [], "")
    }
    caller = Caller(AuditEntry.CallerKind.COMMAND, os_user())
    record_write(caller=caller, method="COMMAND", route=name, ids=given, status=status)


def without_credentials(value: Any) -> Any:
    """A user and password in a URL are nobody's to read in the audit trail."""
    return CREDENTIALS.sub("***", value) if isinstance(value, str) else value
