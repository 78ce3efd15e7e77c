"""API keys: shown once, kept as a digest, judged by everything that can be wrong with them."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from ftproject.core.api_keys import (
    FORM,
    create_api_key,
    create_first_key,
    judge_api_key,
    note_use,
    revoke_api_key,
)
from ftproject.core.errors import ConflictError, NotFoundError, UnauthorizedError
from ftproject.core.models import ApiKey, KeyScope

pytestmark = pytest.mark.django_db


def code_of(key: str) -> str:
    with pytest.raises(UnauthorizedError) as refusal:
        judge_api_key(key)
    assert "api_key create" in refusal.value.hint
    return refusal.value.code


def test_a_key_is_good_and_its_secret_stands_nowhere_in_its_row() -> None:
    row, key = create_api_key(name="laptop", scope=KeyScope.RUN)
    assert judge_api_key(key) == row
    assert FORM.fullmatch(key)
    assert key.startswith(row.prefix)
    secret = key.removeprefix(row.prefix + "_")
    assert secret not in str(ApiKey.objects.values().get())
    assert len(secret) == 43


def test_no_two_keys_are_alike() -> None:
    keys = {create_api_key(name="x", scope=KeyScope.READ)[1] for _ in range(20)}
    assert len(keys) == ApiKey.objects.values("digest").distinct().count() == 20


def test_every_wrong_letter_makes_another_key() -> None:
    row, key = create_api_key(name="laptop", scope=KeyScope.RUN)
    for position in range(len(row.prefix) + 1, len(key)):
        wrong = key[:position] + ("A" if key[position] != "A" else "B") + key[position + 1 :]
        assert code_of(wrong) == "invalid_api_key"


@pytest.mark.parametrize(
    "key", ["", "qwen3vl_", "qwen3vl_00000000_", "x" * 5000, "qwen3vl_00000000_" + "x" * 43, "\x00", "ключ"]
)
def test_what_is_no_key_is_refused_as_one(key: str) -> None:
    assert code_of(key) == "invalid_api_key"


def test_the_digest_is_no_key() -> None:
    row, _ = create_api_key(name="laptop", scope=KeyScope.RUN)
    assert code_of(f"{row.prefix}_{row.digest[:43]}") == "invalid_api_key"


def test_a_key_ends_at_its_time() -> None:
    now = timezone.now()
    _, key = create_api_key(name="a", scope=KeyScope.RUN, expires_at=now + timedelta(minutes=1))
    assert judge_api_key(key).state == "active"
    ApiKey.objects.update(expires_at=now)
    assert code_of(key) == "expired_api_key"


def test_a_revoked_key_is_refused_at_once_and_keeps_its_row() -> None:
    row, key = create_api_key(name="a", scope=KeyScope.RUN)
    assert revoke_api_key(prefix=row.prefix).state == "revoked"
    assert code_of(key) == "revoked_api_key"
    with pytest.raises(ConflictError):
        revoke_api_key(prefix=row.prefix)
    with pytest.raises(NotFoundError, match="qwen3vl_ffffffff"):
        revoke_api_key(prefix="qwen3vl_ffffffff")


def test_only_its_holder_is_told_that_a_key_was_revoked() -> None:
    row, key = create_api_key(name="a", scope=KeyScope.RUN)
    revoke_api_key(prefix=row.prefix)
    assert code_of(key[:-1] + ("A" if key[-1] != "A" else "B")) == "invalid_api_key"


def test_a_thousand_requests_write_the_last_use_once() -> None:
    row, key = create_api_key(name="a", scope=KeyScope.RUN)
    note_use(judge_api_key(key))
    row.refresh_from_db()
    first = row.last_used_at
    assert first is not None
    with CaptureQueriesContext(
        connection,
    ) as queries:
        for _ in range(20):
            note_use(judge_api_key(key))
    assert not [query for query in queries.captured_queries if "UPDATE" in query["sql"]]
    ApiKey.objects.update(last_used_at=first - timedelta(minutes=6))
    note_use(judge_api_key(key))
    row.refresh_from_db()
    assert row.last_used_at is not None
    assert row.last_used_at >= first


def test_the_first_key_is_made_once_and_never_again() -> None:
    key = create_first_key()
    assert key is not None
    assert judge_api_key(key).scope == "admin"
    assert create_first_key() is None
    revoke_api_key(prefix=ApiKey.objects.get().prefix)
    assert create_first_key() is None


@pytest.mark.parametrize(
    ("scope", "allowed"), [("read", ["read"]), ("run", ["read", "run"]), ("admin", ["read", "run", "admin"])]
)
def test_a_scope_includes_those_before_it(scope: str, allowed: list[str]) -> None:
    assert [needed.value for needed in KeyScope if KeyScope(scope).allows(needed)] == allowed
