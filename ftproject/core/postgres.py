"""What PostgreSQL needs beyond Django: text that it can store, and locks by name."""

import json
from typing import Any

from django.db import connection
from django.db.backends.base.base import BaseDatabaseWrapper

REPLACEMENT = "\ufffd"


def accept_any_text(*, connection: BaseDatabaseWrapper, **_: Any) -> None:
    """On every new connection: NUL, which PostgreSQL cannot store and a byte-level tokenizer can say, becomes U+FFFD.

    In parameters of a lookup too, so that a name with a NUL in it is not found instead of failing.
    """
    if connection.vendor != "postgresql":
        return
    from psycopg.types.json import Jsonb, JsonbDumper
    from psycopg.types.string import StrDumperUnknown

    class AnyTextDumper(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\x00", REPLACEMENT))

    class AnyJsonDumper(JsonbDumper):
        def dump(self, obj: Any) -> Any:
            return storable_json(bytes(super().dump(obj) or b""))

    connection.connection.adapters.register_dumper(str, AnyTextDumper)
    connection.connection.adapters.register_dumper(Jsonb, AnyJsonDumper)


def storable_json(dumped: bytes) -> bytes:
    """The same JSON without NUL and halves of surrogate pairs, which are legal JSON and no legal jsonb."""
    if b"\\u0000" not in dumped and b"\\ud" not in dumped.lower():
        return dumped
    return json.dumps(storable(json.loads(dumped))).encode()


def storable(value: Any) -> Any:
    if isinstance(value, str):
        whole = value.replace("\x00", REPLACEMENT).encode("utf-16", "surrogatepass")
        return whole.decode("utf-16", "replace")
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return value


def lock_name(name: str) -> None:
    """Until the transaction ends nobody else passes with this name; on SQLite the transaction itself sees to that."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [name])
