"""`manage.py api_key`: made, shown once, listed without the secret, revoked."""

import json
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from ftproject.core.api_keys import judge_api_key
from ftproject.core.errors import UnauthorizedError
from ftproject.core.models import ApiKey, AuditEntry
from ftproject.system import serving

pytestmark = pytest.mark.django_db


def api_key(*arguments: str) -> str:
    out = StringIO()
    call_command("api_key", *arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


def test_a_key_is_printed_alone_so_that_a_script_can_take_it() -> None:
    key = api_key("create", "laptop", "--scope", "run", "--days", "90").strip()
    row = judge_api_key(key)
    assert (row.name, row.scope) == ("laptop", "run")
    assert row.expires_at is not None
    assert (row.expires_at - row.created_at).days in {89, 90}


def test_a_key_looks_only_unless_more_is_asked_for() -> None:
    assert json.loads(api_key("create", "laptop", "--json"))["scope"] == "read"


def test_the_list_shows_every_key_and_no_secret() -> None:
    key = api_key("create", "laptop").strip()
    api_key("create", "desk")
    told = api_key("list")
    keys: list[dict[str, Any]] = json.loads(api_key("list", "--json"))["keys"]
    assert [entry["name"] for entry in keys] == ["laptop", "desk"]
    assert keys[0]["prefix"] in told
    secret = key.removeprefix(keys[0]["prefix"])
    assert secret not in told + json.dumps(keys)


def test_a_revoked_key_is_good_for_nothing() -> None:
    key = api_key("create", "laptop").strip()
    prefix = ApiKey.objects.get().prefix
    assert prefix in api_key("revoke", prefix)
    with pytest.raises(UnauthorizedError):
        judge_api_key(key)
    with pytest.raises(CommandError, match="revoked already"):
        api_key("revoke", prefix)


@pytest.mark.parametrize(
    "arguments",
    [["create", "  "], ["create", "x" * 101], ["create", "x", "--days", "0"], ["revoke", "qwen3vl_none"]],
)
def test_what_cannot_be_done_is_said(arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        api_key(*arguments)
    assert ApiKey.objects.count() == 0


def test_making_and_revoking_stand_in_the_audit_trail_without_the_key() -> None:
    key = api_key("create", "laptop").strip()
    api_key("list")
    api_key("revoke", ApiKey.objects.get().prefix)
    entries = list(AuditEntry.objects.order_by("id"))
    assert [(entry.route, entry.ids["action"]) for entry in entries] == [("api_key", "create"), ("api_key", "revoke")]
    assert key.removeprefix("qwen3vl_").partition("_")[2] not in str([entry.ids for entry in entries])


def test_the_first_start_on_a_public_address_prints_a_key_and_no_later_one_does() -> None:
    assert serving.first_key_lines("127.0.0.1") == []
    lines = serving.first_key_lines("0.0.0.0")  # noqa: S104
    key = next(word for word in " ".join(lines).split() if word.startswith("qwen3vl_"))
    assert judge_api_key(key).scope == "admin"
    assert serving.first_key_lines("0.0.0.0") == []  # noqa: S104
    ApiKey.objects.update(revoked_at="2026-01-01T00:00:00Z")
    assert serving.first_key_lines("192.168.1.5") == []
    assert [entry.route for entry in AuditEntry.objects.all()] == ["serve"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_an_address_of_this_machine_alone_needs_no_key(host: str) -> None:
    assert serving.is_loopback_host(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "gpu-box", ""])  # noqa: S104
def test_every_other_address_is_public(host: str) -> None:
    assert not serving.is_loopback_host(host)
