"""Sorts what a database refuses: it is away, it is busy, or the question was wrong."""

import sqlite3

from django.db import InterfaceError, OperationalError, connections

# What a write may fail of and work a moment later.
TRANSIENT = (OperationalError, InterfaceError)
# Shut down, crashed, starting, its disk is gone; too many connections; a transaction that was left open.
AWAY = {"57P01", "57P02", "57P03", "57P05", "53300", "25P03"}
# A lock that was not given in time, a deadlock, a conflict with another transaction.
BUSY = {"55P03", "40P01", "40001"}
DISK_FULL = "53100"


def is_away(exc: BaseException) -> bool:
    """Whether there is no connection: none could be made, or the one there was broke."""
    if isinstance(exc, InterfaceError):
        return True
    if not isinstance(exc, OperationalError) or isinstance(exc.__cause__, sqlite3.Error) or exc.__cause__ is None:
        return False
    state = sqlstate(exc)
    return not state or state.startswith("08") or state in AWAY


def is_busy(exc: BaseException) -> bool:
    return isinstance(exc, OperationalError) and ("locked" in str(exc) or sqlstate(exc) in BUSY)


def is_full(exc: BaseException) -> bool:
    return isinstance(exc, OperationalError) and ("disk is full" in str(exc) or sqlstate(exc) == DISK_FULL)


def close_broken_connections() -> None:
    """The next question opens a connection anew; within a transaction the one there is must stay, to roll it back."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def sqlstate(exc: BaseException) -> str:
    """PostgreSQL's five letters; empty when the connection broke before it could say any."""
    return getattr(exc.__cause__, "sqlstate", None) or ""
