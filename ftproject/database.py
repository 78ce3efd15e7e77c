"""Turns QWEN3VL_DATABASE_URL into Django's database settings: SQLite in the data directory, or PostgreSQL."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

# IMMEDIATE: a deferred read-then-write transaction fails at once with "locked", whatever the timeout (293 of 750
# measured); WAL lets readers go on while a run writes.
SQLITE: dict[str, Any] = {
    "ENGINE": "django.db.backends.sqlite3",
    "CONN_MAX_AGE": None,
    "OPTIONS": {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;",
    },
}
# A server that went away without a word is noticed within about 30 s on either side; until then it would keep the locks
# of a transaction whose client is gone. The lock wait is SQLite's.
POSTGRES_OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "qwen3vl",
    "options": "-c lock_timeout=20s -c idle_in_transaction_session_timeout=120s "
    "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
}


def database_settings(url: str, data_dir: Path) -> dict[str, Any]:
    """Django's settings of one database; an empty URL is SQLite in the data directory."""
    if not url:
        return {**SQLITE, "NAME": data_dir / "database.sqlite3"}
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        return {**SQLITE, "NAME": dj_database_url.parse(url)["NAME"]}
    if scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured(
            f"QWEN3VL_DATABASE_URL begins with {scheme + ':' if scheme else url[:20]!r}: write "
            "postgres://user:password@host:5432/name, or leave it empty for SQLite."
        )
    parsed: dict[str, Any] = dict(dj_database_url.parse(url, conn_max_age=None, conn_health_checks=True))
    # What the URL's own query says (?sslmode=require) wins.
    return {**parsed, "OPTIONS": {**POSTGRES_OPTIONS, **parsed.get("OPTIONS", {})}}
