"""`manage.py api_key`: makes, lists and revokes the keys of requests that are not local."""

import json
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from ftproject.core.api_keys import create_api_key, revoke_api_key
from ftproject.core.commands import AuditedCommand
from ftproject.core.errors import ProductError
from ftproject.core.models import ApiKey, KeyScope


class Command(AuditedCommand):
    help = "Makes, lists and revokes API keys."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="create|list|revoke")
        creating = actions.add_parser("create", help="makes a key and prints it, this once")
        creating.add_argument("name", help="whose or what for, as lists and the audit trail show it")
        creating.add_argument("--scope", choices=KeyScope.values, default=KeyScope.READ.value)
        creating.add_argument("--days", type=int, help="days until it expires; without: never")
        creating.add_argument("--json", action="store_true")
        listing = actions.add_parser("list", help="all keys, oldest first")
        listing.add_argument("--json", action="store_true")
        revoking = actions.add_parser("revoke", help="ends a key at once")
        revoking.add_argument("prefix", help="as `list` shows it")
        revoking.add_argument("--json", action="store_true")

    def changes_something(self, options: dict[str, Any]) -> bool:
        return options["action"] in {"create", "revoke"}

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            getattr(self, f"do_{options['action']}")(options)
        except ProductError as error:
            raise CommandError(f"{error.code}: {error.detail} {error.hint}".strip()) from None

    def do_create(self, options: dict[str, Any]) -> None:
        name = options["name"].strip()
        if not 1 <= len(name) <= 100:
            raise CommandError("The name must have 1 to 100 characters.")
        row, key = create_api_key(name=name, scope=KeyScope(options["scope"]), expires_at=expiry_of(options["days"]))
        if options["json"]:
            self.stdout.write(json.dumps({"key": key, **described(row)}))
            return
        self.stdout.write(key)
        self.stderr.write(f"Scope {row.scope}, {expiry_text(row)}. It is not stored and not shown again.")

    def do_list(self, options: dict[str, Any]) -> None:
        keys = list(ApiKey.objects.all())
        if options["json"]:
            self.stdout.write(json.dumps({"keys": [described(key) for key in keys]}))
            return
        self.stdout.write("\n".join(map(line_of, keys)) or "There are no keys.")

    def do_revoke(self, options: dict[str, Any]) -> None:
        key = revoke_api_key(prefix=options["prefix"])
        self.stdout.write(json.dumps(described(key)) if options["json"] else f"{key} is revoked.")


def expiry_of(days: int | None) -> datetime | None:
    if days is None:
        return None
    if not 1 <= days <= 3650:
        raise CommandError("--days must be 1 to 3650.")
    return timezone.now() + timedelta(days=days)


def described(key: ApiKey) -> dict[str, Any]:
    moments = ("created_at", "expires_at", "last_used_at", "revoked_at")
    times = {name: moment.isoformat() if (moment := getattr(key, name)) else None for name in moments}
    return {"prefix": key.prefix, "name": key.name, "scope": key.scope, "state": key.state, **times}


def expiry_text(key: ApiKey) -> str:
    return f"until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else "without an end"


def line_of(key: ApiKey) -> str:
    used = f"used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"
    return f"{key.prefix}  {key.scope:<5}  {key.state:<7}  {expiry_text(key)}, {used}  {key.name}"
