"""Work that is tried again: for a moment while the database is busy, for minutes while it is away."""

import sqlite3
from collections.abc import Callable

import psycopg
import pytest
from django.db import DataError, Error, InterfaceError, OperationalError
from psycopg import errors

from ftproject.core import persistence
from ftproject.core.database_faults import is_away, is_busy
from ftproject.core.persistence import persistently

pytestmark = pytest.mark.django_db


def caused(error: Error, cause: BaseException) -> Error:
    error.__cause__ = cause
    return error


AWAY = caused(OperationalError("server closed the connection unexpectedly"), psycopg.OperationalError())
BUSY = caused(OperationalError("deadlock detected"), errors.DeadlockDetected())


class Clock:
    """Moves by what is slept."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(persistence, "time", made)
    return made


def failing(error: Error, times: int) -> Callable[[], str]:
    failures = iter([error] * times)

    def work() -> str:
        if failure := next(failures, None):
            raise failure
        return "done"

    return work


def test_a_database_that_is_away_for_ten_minutes_is_waited_for(clock: Clock) -> None:
    assert persistently(failing(AWAY, 300)) == "done"
    assert clock.now == 600


def test_a_database_that_stays_away_ends_the_wait(clock: Clock) -> None:
    with pytest.raises(OperationalError, match="closed"):
        persistently(failing(AWAY, 10_000))
    assert persistence.AWAY_SECONDS < clock.now < persistence.AWAY_SECONDS + 10


def test_a_busy_database_is_asked_five_times(clock: Clock) -> None:
    assert persistently(failing(BUSY, 4)) == "done"
    with pytest.raises(OperationalError, match="deadlock"):
        persistently(failing(BUSY, 5))


def test_a_wrong_statement_is_not_tried_again(clock: Clock) -> None:
    with pytest.raises(DataError):
        persistently(failing(DataError("value too long"), 1))
    assert clock.now == 0


@pytest.mark.parametrize(
    ("error", "away", "busy"),
    [
        (AWAY, True, False),
        (InterfaceError("connection already closed"), True, False),
        (caused(OperationalError("terminating connection"), errors.AdminShutdown()), True, False),
        (caused(OperationalError("starting up"), errors.CannotConnectNow()), True, False),
        (caused(OperationalError("too many clients"), errors.TooManyConnections()), True, False),
        (BUSY, False, True),
        (caused(OperationalError("lock timeout"), errors.LockNotAvailable()), False, True),
        (caused(OperationalError("serialize"), errors.SerializationFailure()), False, True),
        (caused(OperationalError("disk full"), errors.DiskFull()), False, False),
        (caused(OperationalError("database is locked"), sqlite3.OperationalError()), False, True),
        (caused(OperationalError("no such table: x"), sqlite3.OperationalError()), False, False),
        (caused(DataError("out of range"), errors.NumericValueOutOfRange()), False, False),
        (ValueError("x"), False, False),
    ],
)
def test_each_failure_is_sorted(error: Exception, away: bool, busy: bool) -> None:
    assert (is_away(error), is_busy(error)) == (away, busy)
