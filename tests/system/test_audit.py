"""The audit trail: every write leaves who, what, when and how it ended; a read nothing; a failure harms nobody."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from ftproject.core import audit
from ftproject.core.audit import prune_audit, record_write, store_waiting
from ftproject.core.callers import LOCAL, SCOPE_KEY, Caller
from ftproject.core.commands import AuditedCommand, record_command
from ftproject.core.models import ApiKey, AuditEntry
from ftproject.system.housekeeping import Housekeeper
from sessions_app.models import TrainingSession

pytestmark = pytest.mark.django_db
JSON = "application/json"


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    audit.waiting.clear()
    yield
    audit.waiting.clear()


@pytest.fixture
def client() -> Client:
    return Client(HTTP_HOST="localhost")


@contextmanager
def broken_trail() -> Iterator[None]:
    """The table is away, so that every insert really fails."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE core_auditentry RENAME TO core_auditentry_away")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE core_auditentry_away RENAME TO core_auditentry")


def create_session(client: Client, name: str = "a", **extra: Any) -> Any:
    return client.post("/api/sessions/", {"name": name}, content_type=JSON, **extra)


def test_a_write_leaves_who_what_when_and_how_it_ended(client: Client) -> None:
    made = create_session(client).json()
    entry = AuditEntry.objects.get()
    assert (entry.caller_kind, entry.method, entry.route, entry.path, entry.status) == (
        "local", "POST", "sessions-list", "/api/sessions/", 201,
    )  # fmt: skip
    assert entry.ids == {"id": made["id"]}
    assert timezone.now() - entry.at < timedelta(minutes=1)


def test_a_delete_names_what_it_deleted(client: Client) -> None:
    number = create_session(client).json()["id"]
    client.delete(f"/api/sessions/{number}")
    entry = AuditEntry.objects.first()
    assert entry is not None
    assert (entry.method, entry.route, entry.ids) == (
        "DELETE",
        "sessions-detail",
        {"session_id": str(number), "id": number},
    )


def test_a_refused_write_stands_there_with_its_status(client: Client) -> None:
    client.delete("/api/sessions/999")
    assert [entry.status for entry in AuditEntry.objects.all()] == [404]


def test_a_write_with_a_key_names_the_keys_prefix(client: Client) -> None:
    caller = Caller(AuditEntry.CallerKind.KEY, "qwen3vl_1a2b3c4d")
    extra: dict[str, Any] = {"asgi.scope": {SCOPE_KEY: caller}}
    create_session(client, **extra)
    entry = AuditEntry.objects.get()
    assert (entry.caller_kind, entry.caller) == ("key", "qwen3vl_1a2b3c4d")


def test_no_header_makes_somebody_else_of_a_caller(client: Client) -> None:
    create_session(client, HTTP_QWEN3VL_CALLER="root", HTTP_ASGI_SCOPE="root", HTTP_REMOTE_USER="root")
    assert AuditEntry.objects.get().caller == ""


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", "/api/sessions/"),
        ("head", "/api/sessions/"),
        ("options", "/api/sessions/"),
        ("post", "/api/datasets/preview"),
        ("post", "/api/evaluation/compare"),
        ("post", "/api/nothing"),
        ("delete", "/nothing"),
    ],
)
def test_what_only_looks_or_leads_nowhere_leaves_nothing(method: str, path: str, client: Client) -> None:
    getattr(client, method)(path)
    assert AuditEntry.objects.count() == 0


def test_neither_the_body_nor_the_query_is_kept(client: Client) -> None:
    client.post("/api/sessions/?token=needle", {"name": "needle", "description": "needle"}, content_type=JSON)
    assert AuditEntry.objects.count() == 1
    assert "needle" not in str(AuditEntry.objects.values().get())


def test_a_trail_that_cannot_be_written_costs_the_user_nothing_and_is_written_later(client: Client) -> None:
    with broken_trail():
        answers = [create_session(client, name).status_code for name in ("a", "b")]
    assert answers == [201, 201]
    assert TrainingSession.objects.count() == 2
    assert store_waiting() == 2
    assert [entry.route for entry in AuditEntry.objects.all()] == ["sessions-list"] * 2


def test_the_housekeeper_stores_what_waits_and_prunes() -> None:
    duties = [duty for _, _, duty in Housekeeper().duties()]
    assert store_waiting in duties
    assert prune_audit in duties


def test_a_trail_that_stays_broken_does_not_fill_the_memory() -> None:
    with broken_trail():
        audit.waiting.extend(AuditEntry(route=str(number), status=0) for number in range(audit.WAITING_ENTRIES))
        record_write(caller=LOCAL, method="POST", route="x", status=200)
    assert len(audit.waiting) == audit.WAITING_ENTRIES


def test_text_that_no_database_takes_is_made_harmless() -> None:
    record_write(caller=LOCAL, method="POST", route="x", path="/a\x00\udcff", ids={"n": "\x00" * 900}, status=200)
    entry = AuditEntry.objects.get()
    assert entry.path == "/a\ufffd?"
    assert len(entry.ids["n"]) == audit.LONGEST_VALUE


def test_old_entries_go_and_young_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "PRUNED_AT_ONCE", 10)
    old = timezone.now() - timedelta(days=31)
    AuditEntry.objects.bulk_create(AuditEntry(route="old", status=0, at=old, caller_kind="local") for _ in range(25))
    record_write(caller=LOCAL, method="POST", route="young", status=200)
    assert prune_audit() == 25
    assert [entry.route for entry in AuditEntry.objects.all()] == ["young"]


def test_the_route_pages_and_filters_newest_first(client: Client) -> None:
    for name in ("a", "b", "c"):
        create_session(client, name)
    record_write(caller=Caller(AuditEntry.CallerKind.KEY, "p"), method="POST", route="x", status=200)
    page = client.get("/api/system/audit", {"page_size": 3, "page": 1}).json()
    assert (page["total"], page["total_pages"], len(page["entries"])) == (4, 2, 3)
    assert page["entries"][0]["route"] == "x"
    assert set(page["entries"][0]) == {
        "id", "at", "caller_kind", "caller", "method", "route", "path", "ids", "status",
    }  # fmt: skip
    found = client.get("/api/system/audit", {"caller_kind": "key", "caller": "p"}).json()
    assert [entry["route"] for entry in found["entries"]] == ["x"]


@pytest.mark.parametrize("query", [{"page": "0"}, {"page_size": "501"}, {"caller_kind": "root"}, {"whose": "x"}])
def test_a_wrong_query_of_the_trail_is_400(query: dict[str, str], client: Client) -> None:
    answer = client.get("/api/system/audit", query)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_input")


def test_an_admins_action_names_the_admin_and_the_rows(client: Client) -> None:
    client.force_login(User.objects.create_superuser("root"))
    key = ApiKey.objects.create(prefix="qwen3vl_1", name="a", scope="run", digest="0")
    body = {"action": "revoke_keys", "_selected_action": [key.pk]}
    client.post(reverse("admin:core_apikey_changelist"), body)
    key.refresh_from_db()
    assert key.state == "revoked"
    entry = AuditEntry.objects.get()
    assert (entry.caller_kind, entry.caller, entry.route) == ("admin", "root", "admin:core_apikey_changelist")
    assert entry.ids == {"action": "revoke_keys", "selected": [str(key.pk)]}


def test_a_login_that_failed_leaves_no_entry_and_one_that_worked_does(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    User.objects.create_superuser("root", password="right password")
    address = reverse("admin:login")
    client.post(address, {"username": "root", "password": "wrong"})
    assert AuditEntry.objects.count() == 0
    assert "audit" not in caplog.text
    client.post(address, {"username": "root", "password": "right password"})
    assert [(entry.caller, entry.route) for entry in AuditEntry.objects.all()] == [("root", "admin:login")]


@pytest.mark.parametrize("model", ["apikey", "auditentry"])
def test_nobody_changes_the_trail_or_a_key_by_hand(model: str, client: Client) -> None:
    client.force_login(User.objects.create_superuser("root"))
    record_write(caller=LOCAL, method="POST", route="x", status=200)
    key = ApiKey.objects.create(prefix="qwen3vl_1", name="a", scope="run", digest="f" * 64)
    row = {"apikey": key, "auditentry": AuditEntry.objects.first()}[model]
    assert row is not None
    shown = client.get(reverse(f"admin:core_{model}_change", args=[row.pk])).content.decode()
    assert "f" * 64 not in shown
    assert client.get(reverse(f"admin:core_{model}_changelist")).status_code == 200
    assert client.get(reverse(f"admin:core_{model}_add")).status_code == 403
    assert client.post(reverse(f"admin:core_{model}_change", args=[row.pk]), {}).status_code == 403
    assert client.post(reverse(f"admin:core_{model}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403


class Failing(AuditedCommand):
    def handle(self, *args: Any, **options: Any) -> None:
        raise CommandError("no", returncode=3)


def test_a_command_leaves_its_options_and_its_exit_code(tmp_path: Any) -> None:
    with pytest.raises(CommandError):
        call_command("import_dataset", str(tmp_path / "none.csv"))
    entry = AuditEntry.objects.get()
    assert (entry.caller_kind, entry.method, entry.route) == ("command", "COMMAND", "import_dataset")
    assert entry.status != 0
    assert "none.csv" in str(entry.ids)
    with pytest.raises(CommandError):
        call_command(Failing())
    newest = AuditEntry.objects.first()
    assert newest is not None
    assert newest.status == 3


def test_a_password_in_a_commands_url_is_not_kept() -> None:
    options = {"target": "postgres://user:needle@host/name", "url": "http://host/path", "verbosity": 1, "limit": None}
    record_command("some_command", options, 0)
    assert AuditEntry.objects.get().ids == {"target": "postgres://***@host/name", "url": "http://host/path"}
