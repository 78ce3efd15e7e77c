"""Tells a holder that has fallen silent from one whose sign of life only looks old, because the clock was set."""

import time
from dataclasses import dataclass
from typing import Any

from ftproject.core.database_faults import TRANSIENT
from ftproject.core.models import GpuLease

clock = time.monotonic
# A doubt must last for so long while the database takes writes: a beat every two seconds would have come through.
CONFIRM_SECONDS = 6.0
# A write that took longer waited for somebody's lock, and so did the beats.
PROMPT_SECONDS = 1.0


@dataclass
class Sighting:
    sign: Any
    since: float
    doubted_since: float | None = None


class SilenceWatch:
    """Whether signs of life have stopped, as this process sees it by the clock that nobody can set.

    A time in a row proves nothing by itself: one step of the wall clock by an hour would end every living run, and a
    step back would keep the dead for as long (docs/decisions/016).
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.seen: dict[str, Sighting] = {}

    def is_silent(self, name: str, sign: Any, *, overdue: bool) -> bool:
        """True when `sign` stays what it was although it should have changed.

        `overdue` says that the sign is old by the wall clock: the doubt then begins at the first look.
        """
        found = self.seen.get(name)
        if found is None or found.sign != sign:
            found = self.seen[name] = Sighting(sign, clock())
        if not overdue and clock() - found.since < self.limit:
            found.doubted_since = None
            return False
        if not database_takes_writes():
            found.doubted_since = None
            return False
        if found.doubted_since is None:
            found.doubted_since = clock()
        return clock() - found.doubted_since >= CONFIRM_SECONDS

    def forget_all_but(self, names: set[str]) -> None:
        self.seen = {name: found for name, found in self.seen.items() if name in names}


def database_takes_writes() -> bool:
    began = clock()
    try:
        GpuLease.objects.filter(pk=0).update(holder="")
    except TRANSIENT:
        return False
    return clock() - began < PROMPT_SECONDS
