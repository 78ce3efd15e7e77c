"""Writes that a run cannot do without: tried again while the database is locked or restarting."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import OperationalError, transaction

logger = logging.getLogger(__name__)

ATTEMPTS = 5
PAUSE_SECONDS = 2.0
Result = TypeVar("Result")


def persistently(write: Callable[[], Result]) -> Result:
    """The result of `write`, all of it or nothing; hours of training must not end for one busy moment.

    Each attempt waits for a lock as long as the database is set to (SQLite: 20 s).
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return whole(write)
        except OperationalError:
            logger.warning("the database could not be written to, attempt %s of %s", attempt, ATTEMPTS, exc_info=True)
            time.sleep(PAUSE_SECONDS)
    return whole(write)


def whole(write: Callable[[], Result]) -> Result:
    with transaction.atomic():
        return write()
