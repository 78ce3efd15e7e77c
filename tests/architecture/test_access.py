"""Who may do what stands in the documents as in the code, and every command that writes leaves an audit entry."""

import re
from pathlib import Path

from django.core.management import get_commands, load_command_class
from django.urls import resolve

from ftproject.core.commands import AuditedCommand
from ftproject.core.models import KeyScope
from ftproject.scopes import ROUTE_SCOPES, scope_of_request

API_PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
OURS = ("ftproject", "datasets_app", "training_app", "evaluation_app", "inference_app", "sessions_app")
# They store nothing in the database of this installation, or have the API do it.
NOT_AUDITED = {
    "build_tiny_model": "writes a folder that it is given",
    "copy_database": "writes another database",
    "demo": "works over HTTP",
    "generate": "answers",
    "serve": "what is written meanwhile has its own entries; its first key too",
}


def documented_scopes() -> dict[tuple[str, str], KeyScope]:
    found = {}
    for scope in KeyScope:
        row = re.search(rf"^\| `{scope.value}` \| (.*) \|$", API_PAGE.read_text(), re.MULTILINE)
        assert row, scope
        for method, address in re.findall(r"`([A-Z]+) (/\S+)`", row[1]):
            path = address.replace("{id}", "7").replace("{name}", "a")
            assert scope_of_request(method, path) == scope, address
            found[method, str(resolve(path).view_name)] = scope
    return found


def test_the_scopes_of_the_api_page_are_those_of_the_table() -> None:
    by_rule = {
        (method, name)
        for (method, name), scope in ROUTE_SCOPES.items()
        if (method, scope) in {("GET", KeyScope.READ), ("DELETE", KeyScope.ADMIN)}
    }
    assert set(documented_scopes()) == set(ROUTE_SCOPES) - by_rule


def test_every_command_leaves_an_audit_entry_or_says_here_why_not() -> None:
    ours = {name: str(app) for name, app in get_commands().items() if str(app).startswith(OURS)}
    silent = {name for name, app in ours.items() if not isinstance(load_command_class(app, name), AuditedCommand)}
    assert silent == set(NOT_AUDITED), "subclass ftproject.core.commands.AuditedCommand, or name it in NOT_AUDITED"
