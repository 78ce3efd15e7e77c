"""Databases of their own for the processes that tests start, on the server that the tests run on."""

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

URL = "QWEN3VL_DATABASE_URL"


def own_database(data_dir: Path) -> dict[str, str]:
    """The environment that gives a data directory its own database; empty on SQLite, which lies in the directory."""
    base = os.environ.get(URL, "")
    if not base.startswith("postgres"):
        return {}
    name = f"own_{hashlib.sha256(str(data_dir).encode()).hexdigest()[:20]}"
    create_database(base, name)
    return {URL: urlunsplit(urlsplit(base)._replace(path=f"/{name}"))}


def create_database(url: str, name: str) -> None:
    import psycopg
    from psycopg import sql

    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
