"""`manage.py prune`: shows what may go, and how many bytes; `--yes` removes it."""

import json
from typing import Any

from django.core.management.base import CommandParser

from ftproject.core.commands import AuditedCommand
from ftproject.system.pruning import CATEGORIES, Prunable, prunable, prune


class Command(AuditedCommand):
    help = "Shows what may be removed: nothing that a listed adapter, a waiting run or a dataset needs. --yes does it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("categories", nargs="*", choices=[*CATEGORIES, []], help="default: all")
        parser.add_argument("--days", type=float, default=30.0, help="keep what is younger (30)")
        doing = parser.add_mutually_exclusive_group()
        doing.add_argument("--yes", action="store_true", help="remove it")
        doing.add_argument("--dry-run", action="store_true", help="only show it, as without any option")
        parser.add_argument("--json", action="store_true", help="for programs")

    def changes_something(self, options: dict[str, Any]) -> bool:
        return bool(options["yes"])

    def handle(self, *args: Any, **options: Any) -> None:
        items = prunable(options["categories"] or list(CATEGORIES), days=options["days"])
        kept = prune(items) if options["yes"] else []
        if options["json"]:
            self.stdout.write(json.dumps(described(items, kept, removed=options["yes"]), indent=2))
            return
        for item in items:
            self.stdout.write(f"{item.category:12} {item.size_bytes:>15,} bytes  {item.count:>8,}  {item.name}")
        for line in kept:
            self.stdout.write(f"kept: {line}")
        size = sum(item.size_bytes for item in items)
        did = "were removed" if options["yes"] else "can go: --yes removes them"
        self.stdout.write(f"{size:,} bytes {did}.")


def described(items: list[Prunable], kept: list[str], *, removed: bool) -> dict[str, Any]:
    return {
        "removed": removed,
        "size_bytes": sum(item.size_bytes for item in items),
        "items": [
            {"category": item.category, "name": item.name, "count": item.count, "size_bytes": item.size_bytes}
            for item in items
        ],
        "kept": kept,
    }
