"""`copy_database`: every row as it was, ids that go on, and everything that refuses it."""

from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from ftproject.core.events import publish
from ftproject.core.models import Event
from ftproject.system import database_copy
from ftproject.system.database_copy import copied_models, copy_everything, opened
from ftproject.system.serving import sole_server
from tests.core.jobs import make_evaluation, make_training
from tests.postgres.databases import URL, own_database
from training_app.models import TrainingMetric, TrainingRun

pytestmark = pytest.mark.django_db
Ids = dict[str, int]


@pytest.fixture(autouse=True)
def other_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Django's test case forbids databases that the settings do not name; this command is about one."""

    def ensure_connection(self: BaseDatabaseWrapper) -> None:
        if self.connection is None:
            with self.wrap_database_errors:
                self.connect()

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", ensure_connection)


def fill() -> TrainingRun:
    """Rows of many tables, with what copies get wrong: old times, references back and forth, text, gaps in the ids."""
    first = make_training(status="error", message='"quoted" \u00e9\u4e2d\U0001f600', warnings=["a", {"b": None}])
    second = make_training(resumed_from=first, idempotency_key="k")
    make_evaluation()
    TrainingMetric.objects.bulk_create(
        TrainingMetric(run=second, step=step, loss=1 / (step + 1)) for step in range(1203)
    )
    TrainingRun.objects.update(created_at=timezone.now() - timedelta(days=400))
    group = Group.objects.create(name="readers")
    group.permissions.set(Permission.objects.all()[:3])
    User.objects.create_superuser("admin", password="x").groups.add(group)
    say("one")
    Event.objects.filter(pk=say("deleted").pk).delete()
    return second


def say(message: str) -> Event:
    return publish("training_status", {"run_id": 1, "status": "training", "message": message})


def everything(alias: str) -> dict[str, Any]:
    return {
        model._meta.db_table: list(model._base_manager.using(alias).order_by("pk").values())
        for model in copied_models()
    }


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/copy.sqlite3" if request.param == "sqlite" else own_database(tmp_path).get(URL, "")
    if not url:
        pytest.skip("needs PostgreSQL: make test-postgres")
    return url


def test_every_row_arrives_as_it_was_and_the_ids_go_on(data_dir: Path, target: str, capsys: Any) -> None:
    fill()
    call_command("copy_database", target)
    assert "rows copied and counted" in capsys.readouterr().out
    with opened(target, data_dir) as alias:
        assert everything(alias) == everything("default")
        newest = say("the next").pk
        assert Event.objects.using(alias).create(type="x", data={}).pk == newest
        assert TrainingRun.objects.using(alias).get(idempotency_key="k").resumed_from is not None


def test_a_copy_of_the_copy_is_the_same(data_dir: Path, target: str, tmp_path: Path) -> None:
    fill()
    with opened(target, data_dir) as first, opened(f"sqlite:///{tmp_path}/back.sqlite3", data_dir, "back") as back:
        copied = copy_everything("default", first, lambda table, count: None)
        assert copy_everything(first, back, lambda table, count: None) == copied
        assert everything(back) == everything("default")


def test_a_target_with_rows_is_refused_and_left_alone(data_dir: Path, target: str) -> None:
    fill()
    call_command("copy_database", target)
    say("later")
    with pytest.raises(CommandError, match="not empty"):
        call_command("copy_database", target)
    with opened(target, data_dir) as alias:
        assert Event.objects.using(alias).count() == Event.objects.count() - 1


def test_rows_that_are_lost_on_the_way_roll_everything_back(
    data_dir: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill()
    monkeypatch.setattr(database_copy, "islice", lambda rows, count: list(islice(rows, count))[1:])
    with pytest.raises(CommandError, match="Nothing was copied"):
        call_command("copy_database", target)
    with opened(target, data_dir) as alias:
        assert not any(rows for table, rows in everything(alias).items() if table.startswith("training_app"))


def test_the_same_database_is_no_target(data_dir: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/copy.sqlite3"
    with (
        opened(url, data_dir, "one") as one,
        opened(url, data_dir, "two") as two,
        pytest.raises(CommandError, match="same"),
    ):
        copy_everything(one, two, lambda table, count: None)


def test_a_target_that_cannot_be_reached_is_named(data_dir: Path) -> None:
    with pytest.raises(CommandError, match="cannot be reached"):
        call_command("copy_database", "postgres://nobody@127.0.0.1:9/nothing")


def test_a_running_server_keeps_the_copy_out(data_dir: Path, tmp_path: Path) -> None:
    with sole_server("http://127.0.0.1:1"), pytest.raises(CommandError, match="Another server"):
        call_command("copy_database", f"sqlite:///{tmp_path}/copy.sqlite3")


def test_the_target_is_forgotten_afterwards(data_dir: Path, tmp_path: Path) -> None:
    call_command("copy_database", f"sqlite:///{tmp_path}/copy.sqlite3")
    assert list(connections.databases) == ["default"]
