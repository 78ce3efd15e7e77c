"""Settings from the environment: wrong ones are named with what to write instead."""

import stat
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from ftproject import conf
from ftproject.core import checks
from ftproject.database import database_settings


@pytest.mark.parametrize(("raw", "value"), [("1", True), ("true", True), ("ON", True), ("0", False), ("no", False)])
def test_truth_is_written_in_several_ways(raw: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3VL_DEBUG", raw)
    assert conf.env_bool("DEBUG", default=not value) is value


@pytest.mark.parametrize(("name", "raw", "words"), [("PORT", "eighty", "whole number"), ("PORT", "0", "at least 1")])
def test_a_wrong_number_is_named(name: str, raw: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"QWEN3VL_{name}", raw)
    with pytest.raises(ImproperlyConfigured, match=words):
        conf.env_int(name, 8000)


def test_a_wrong_truth_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3VL_DEBUG", "maybe")
    with pytest.raises(ImproperlyConfigured, match="QWEN3VL_DEBUG"):
        conf.env_bool("DEBUG", default=False)


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3VL_IMAGE_ALLOWED_HOSTS", " a:1, ,b:2")
    assert conf.env_list("IMAGE_ALLOWED_HOSTS") == ["a:1", "b:2"]


def test_the_secret_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret_key"
    secret = conf.read_or_create_secret(path)
    assert conf.read_or_create_secret(path) == secret
    assert len(secret) >= 50
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_data_directories_have_two_secrets(tmp_path: Path) -> None:
    assert conf.read_or_create_secret(tmp_path / "a") != conf.read_or_create_secret(tmp_path / "b")


def test_the_settings_as_shipped_pass_every_check() -> None:
    found = [
        *checks.check_choices(None),
        *checks.check_queue(None),
        *checks.check_data_dir(None),
        *checks.check_debug(None),
    ]
    assert found == []


@pytest.mark.parametrize(
    ("name", "value", "check", "identifier"),
    [
        ("BACKEND", "magic", checks.check_choices, "qwen3vl.E001"),
        ("EXECUTOR", "magic", checks.check_choices, "qwen3vl.E002"),
        ("DATA_DIR", Path("/proc/nowhere"), checks.check_data_dir, "qwen3vl.E004"),
        ("INFERENCE_URL", "localhost:8001", checks.check_inference_url, "qwen3vl.E005"),
        ("INFERENCE_URL", "ftp://localhost/v1", checks.check_inference_url, "qwen3vl.E005"),
        ("INFERENCE_URL", "http://", checks.check_inference_url, "qwen3vl.E005"),
        ("INFERENCE_URL", "http://user:secret@host/v1", checks.check_inference_url, "qwen3vl.E005"),
        ("INFERENCE_URL", "http://host:99999/v1", checks.check_inference_url, "qwen3vl.E005"),
        ("INFERENCE_URL", "http://[::1/v1", checks.check_inference_url, "qwen3vl.E005"),
        ("DEBUG", True, checks.check_debug, "qwen3vl.W001"),
    ],
)
def test_a_wrong_setting_is_a_check_with_an_id_and_a_hint(
    name: str, value: Any, check: Any, identifier: str, settings: Any
) -> None:
    setattr(settings, name, value)
    (message,) = check(None)
    assert message.id == identifier
    assert message.hint


@pytest.mark.parametrize(
    "change",
    [
        {"max_attempts": 2},
        {"ack_failures": False},
        {"ALT_CLUSTERS": {"gpu": {"workers": 2, "retry": 1_000_000}}},
        {"ALT_CLUSTERS": {"gpu": {"workers": 1, "retry": 60}}},
    ],
)
def test_a_queue_that_could_run_a_job_twice_is_an_error(change: dict[str, Any], settings: Any) -> None:
    settings.Q_CLUSTER = {**settings.Q_CLUSTER, **change}
    assert [message.id for message in checks.check_queue(None)] == ["qwen3vl.E003"]


@pytest.mark.parametrize("url", ["", "sqlite:////somewhere/else.sqlite3"])
def test_sqlite_runs_in_wal_mode_with_immediate_transactions(url: str, tmp_path: Path) -> None:
    options = database_settings(url, tmp_path)["OPTIONS"]
    assert options["transaction_mode"] == "IMMEDIATE"
    assert "journal_mode=WAL" in options["init_command"]


def test_postgres_has_patience_with_locks_and_none_with_the_dead_unless_the_url_says_otherwise(tmp_path: Path) -> None:
    found = database_settings("postgres://u:p@db:5433/name?sslmode=require&connect_timeout=9", tmp_path)
    assert (found["HOST"], found["PORT"], found["NAME"]) == ("db", 5433, "name")
    assert found["CONN_HEALTH_CHECKS"] is True
    assert found["OPTIONS"]["connect_timeout"] == 9
    assert found["OPTIONS"]["sslmode"] == "require"
    assert "lock_timeout=20s" in found["OPTIONS"]["options"]


@pytest.mark.parametrize("url", ["mysql://u:p@h/n", "nothing", "http://h/n"])
def test_another_kind_of_database_is_refused_with_what_to_write(url: str, tmp_path: Path) -> None:
    with pytest.raises(ImproperlyConfigured, match="postgres://user:password"):
        database_settings(url, tmp_path)
