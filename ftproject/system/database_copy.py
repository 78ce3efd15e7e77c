"""Copies everything from one database to another: each row as it is, counted, and the ids go on where they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from django.apps import apps
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import ConnectionHandler

from ftproject.database import database_settings

TARGET = "copy_target"
ROWS_AT_ONCE = 500
# Made by the migrations themselves; the copy brings the source's, to whose ids other rows refer.
MADE_BY_MIGRATIONS: tuple[type[models.Model], ...] = (Permission, ContentType)


@contextmanager
def opened(url: str, data_dir: Path, alias: str = TARGET) -> Iterator[str]:
    """The database of a URL under an alias of Django's, as long as the block lasts."""
    connections.databases[alias] = ConnectionHandler({"default": database_settings(url, data_dir)}).databases["default"]
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.databases[alias]


def copied_models() -> list[type[models.Model]]:
    """Every table that a model owns, those between two models too."""
    found = apps.get_models(include_auto_created=True)
    return [model for model in found if model._meta.managed and not model._meta.proxy]


def copy_everything(source: str, target: str, say: Callable[[str, int], object]) -> int:
    """All rows of all models, or none: one transaction on either side. Foreign keys are checked at its end."""
    require_other_and_empty(source, target)
    call_command("migrate", database=target, verbosity=0, interactive=False)
    with transaction.atomic(using=source), transaction.atomic(using=target):
        for model in MADE_BY_MIGRATIONS:
            model._base_manager.using(target).all().delete()
        total = 0
        for model in copied_models():
            count = copy_model(model, source, target)
            say(model._meta.db_table, count)
            total += count
        go_on_with_ids(source, target)
    return total


def require_other_and_empty(source: str, target: str) -> None:
    if place(connections[source]) == place(connections[target]):
        raise CommandError("Source and target are the same database.")
    try:
        tables = set(connections[target].introspection.table_names())
    except DatabaseError as exc:
        raise CommandError(f"The target cannot be reached: {exc}") from exc
    for model in copied_models():
        if model in MADE_BY_MIGRATIONS or model._meta.db_table not in tables:
            continue
        with connections[target].cursor() as cursor:
            # Without the model's columns: the target's tables may be of an older version.
            cursor.execute(f"SELECT 1 FROM {model._meta.db_table} LIMIT 1")  # noqa: S608  # nosec - our own tables
            if cursor.fetchone():
                raise CommandError(
                    f"The target is not empty: {model._meta.db_table} holds rows. Name an empty database."
                )


def place(connection: BaseDatabaseWrapper) -> tuple[Any, ...]:
    return tuple(str(connection.settings_dict[name]) for name in ("ENGINE", "NAME", "HOST", "PORT"))


def copy_model(model: type[models.Model], source: str, target: str) -> int:
    """Streams one table; raises when the target does not hold as many rows as were sent."""
    rows = model._base_manager.using(source).order_by("pk").iterator(chunk_size=ROWS_AT_ONCE)
    fields = model._meta.local_concrete_fields
    at_once = min(ROWS_AT_ONCE, connections[target].ops.bulk_batch_size(fields, [None] * ROWS_AT_ONCE))
    sent = 0
    while batch := list(islice(rows, at_once)):
        try:
            # Raw: an ordinary insert would write today into every `created_at`.
            model._base_manager._insert(batch, fields, raw=True, using=target)  # type: ignore[attr-defined]
        except DatabaseError as exc:
            first, last = batch[0].pk, batch[-1].pk
            raise CommandError(f"{model._meta.db_table}, rows {first} to {last}: {exc}Nothing was copied.") from exc
        sent += len(batch)
    stored = model._base_manager.using(target).count()
    if stored != sent or sent != model._base_manager.using(source).count():
        raise CommandError(f"{model._meta.db_table}: {sent} rows were read, {stored} arrived. Nothing was copied.")
    return sent


def go_on_with_ids(source: str, target: str) -> None:
    """The next id is the one that the source would have given: ids of deleted rows, which clients know, stay unused."""
    for model in copied_models():
        if isinstance(model._meta.pk, models.AutoField):
            set_last_id(connections[target], model, last_id(connections[source], model))


def last_id(connection: BaseDatabaseWrapper, model: type[models.Model]) -> int:
    table, column = model._meta.db_table, model._meta.pk.column
    newest = model._base_manager.using(connection.alias).aggregate(newest=models.Max("pk"))["newest"] or 0
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_sequence_last_value(pg_get_serial_sequence(%s, %s)::regclass)", [table, column])
        else:
            cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = %s", [table])
        row = cursor.fetchone()
    return max(newest, row[0] or 0) if row else newest


def set_last_id(connection: BaseDatabaseWrapper, model: type[models.Model], number: int) -> None:
    if number == 0:
        return
    table, column = model._meta.db_table, model._meta.pk.column
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT setval(pg_get_serial_sequence(%s, %s)::regclass, %s)", [table, column, number])
            return
        cursor.execute("DELETE FROM sqlite_sequence WHERE name = %s", [table])
        cursor.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (%s, %s)", [table, number])
