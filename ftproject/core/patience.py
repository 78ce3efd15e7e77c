"""Writes that may fail: of use to somebody later, but not worth a long wait now."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.conf import settings
from django.db import Error, connection, transaction

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.5


def write_if_free(what: str, write: Callable[[], object]) -> bool:
    """Writes within half a second, or says in the log that it could not. Never raises a database's error."""
    try:
        with short_patience(), transaction.atomic():
            write()
    except Error as error:
        logger.warning("%s was not written: %s", what, error)
        return False
    return True


@contextmanager
def short_patience() -> Iterator[None]:
    """SQLite's wait for its lock is 20 s, for a run's sake; whoever waits for an answer must not wait so long."""
    if connection.vendor != "sqlite":
        yield
        return
    patience = settings.DATABASES["default"].get("OPTIONS", {}).get("timeout", 5.0)
    set_busy_timeout(PATIENCE_SECONDS)
    try:
        yield
    finally:
        set_busy_timeout(patience)


def set_busy_timeout(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
