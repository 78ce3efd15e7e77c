"""Looks at the database: whether it is sound, whole in itself, and of this version."""

from collections.abc import Iterator

from django.core.management import call_command
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from ftproject.system.doctor.findings import Finding
from ftproject.system.serving import server_runs

SHOWN = 5
RESTORE = (
    "Restore a backup into another folder (`manage.py restore`), or ask the tool of the database: sqlite3 .recover"
)


def check_database() -> Iterator[Finding]:
    try:
        connection.ensure_connection()
    except DatabaseError as error:
        remedy = "Look at QWEN3VL_DATABASE_URL, or at the rights of database.sqlite3."
        yield Finding("error", "database_unavailable", f"The database does not open: {error}", remedy)
        return
    if connection.vendor == "sqlite":
        yield from check_sqlite()
    yield from check_migrations()


def check_sqlite() -> Iterator[Finding]:
    with connection.cursor() as cursor:
        try:
            said = [str(row[0]) for row in cursor.execute("PRAGMA integrity_check(20)").fetchall()]
        except DatabaseError as error:
            said = [str(error)]
        if said != ["ok"]:
            yield Finding("error", "database_damaged", f"The database is damaged: {'; '.join(said[:SHOWN])}", RESTORE)
            return
        lost = cursor.execute("PRAGMA foreign_key_check").fetchall()
        if lost:
            tables = sorted({f"{table} -> {parent}" for table, _, parent, _ in lost})[:SHOWN]
            message = f"{len(lost)} rows refer to rows that are gone ({', '.join(tables)})."
            yield Finding("error", "rows_lost", message, RESTORE)
        mode = str(cursor.execute("PRAGMA journal_mode").fetchone()[0])
        if mode not in {"wal", "memory"}:
            remedy = "Move the data directory to a local disk."
            yield Finding(
                "warning", "no_wal", f"SQLite keeps its journal as {mode!r}: readers and writers wait.", remedy
            )


def check_migrations() -> Iterator[Finding]:
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if plan:
        names = ", ".join(f"{migration.app_label}.{migration.name}" for migration, _ in plan[:SHOWN])
        fix = None if server_runs() else migrate
        remedy = "`manage.py migrate`, or start the server: `manage.py serve` does it."
        yield Finding("error", "not_migrated", f"{len(plan)} migrations are not applied ({names}).", remedy, fix)
    unknown = sorted(set(executor.loader.applied_migrations) - set(executor.loader.disk_migrations))
    if unknown:
        names = ", ".join(".".join(key) for key in unknown[:SHOWN])
        remedy = "Use the version that made this data directory, or a later one."
        yield Finding("error", "newer_database", f"The database is of a later version ({names}).", remedy)


def migrate() -> str:
    call_command("migrate", verbosity=0, interactive=False)
    return "The database is migrated."
