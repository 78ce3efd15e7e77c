"""Reads and writes that a run cannot do without: tried again while the database is locked, restarting or away."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import transaction

from ftproject.core.database_faults import TRANSIENT, close_broken_connections, is_away

logger = logging.getLogger(__name__)

ATTEMPTS = 5
PAUSE_SECONDS = 2.0
# A server that is moved or upgraded is away for minutes; a night of training can wait for it.
AWAY_SECONDS = 900.0
Result = TypeVar("Result")


def persistently(work: Callable[[], Result]) -> Result:
    """The result of `work`, all of it or nothing; hours of training must not end for one busy moment.

    Each attempt waits for a lock as long as the database is set to (20 s). A connection that breaks while it commits
    leaves unknown whether it did, so `work` may be done twice and has to find itself done.
    """
    began, busy = time.monotonic(), 0
    while True:
        try:
            return whole(work)
        except TRANSIENT as exc:
            away = is_away(exc)
            busy += not away
            if busy >= ATTEMPTS or (away and time.monotonic() - began > AWAY_SECONDS):
                raise
            logger.warning("the database %s, trying again", "is away" if away else "is busy", exc_info=not away)
        close_broken_connections()
        time.sleep(PAUSE_SECONDS)


def whole(work: Callable[[], Result]) -> Result:
    with transaction.atomic():
        return work()
