"""The audit trail: one row for each write, stored after it, never at its cost."""

import getpass
import logging
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from threading import Lock
from typing import Any

from django.utils import timezone

from ftproject.core.callers import Caller
from ftproject.core.events import RETENTION
from ftproject.core.models import AuditEntry
from ftproject.core.patience import write_if_free

logger = logging.getLogger(__name__)

WAITING_ENTRIES = 1000
PRUNED_AT_ONCE = 1000
LONGEST_VALUE = 200
LONGEST_LIST = 100
# What a locked or absent database did not take; the next write or the housekeeper tries again.
waiting: deque[AuditEntry] = deque(maxlen=WAITING_ENTRIES)
taking = Lock()


def record_write(
    *, caller: Caller, method: str, route: str, status: int, path: str = "", ids: Mapping[str, Any] | None = None
) -> None:
    """Never raises: the write that it tells of has happened."""
    try:
        waiting.append(
            AuditEntry(
                caller_kind=caller.kind,
                caller=clean(caller.name)[:150],
                method=method[:8],
                route=clean(route)[:100],
                path=clean(path)[:300],
                ids={clean(name): clean_value(value) for name, value in (ids or {}).items()},
                status=status,
            )
        )
        store_waiting()
    except Exception:
        logger.exception("the audit entry of %s %s could not be made", method, route)


def store_waiting() -> int:
    """Stores what waits, in its order; gives back how many that were."""
    with taking:
        taken = [waiting.popleft() for _ in range(len(waiting))]
    if not taken:
        return 0
    named = "; ".join(map(str, taken[:5]))
    if write_if_free(f"audit: {named} ({len(taken)} in all)", lambda: AuditEntry.objects.bulk_create(taken)):
        return len(taken)
    for entry in taken:
        entry.pk = None
    if len(taken) == WAITING_ENTRIES:
        logger.error("the audit trail loses entries: %s", taken[-1])
    waiting.extendleft(reversed(taken))
    return 0


def prune_audit(keep: timedelta = RETENTION) -> int:
    """Deletes old entries, a thousand at a time: a run must not wait for the database meanwhile."""
    deleted = 0
    while True:
        old = AuditEntry.objects.filter(at__lt=timezone.now() - keep).order_by("id")
        some = AuditEntry.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:PRUNED_AT_ONCE])).delete()[0]
        deleted += some
        if some < PRUNED_AT_ONCE:
            return deleted


def os_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


def clean(text: object) -> str:
    """Text that every database takes: a path from the wire can hold NUL and half of a surrogate pair."""
    return str(text).encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def clean_value(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [clean_value(item) for item in value[:LONGEST_LIST]]
    return value if isinstance(value, bool | int | float) else clean(value)[:LONGEST_VALUE]
