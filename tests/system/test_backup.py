"""Back-up while everything is in use: whatever is deleted or made meanwhile, no row of a backup lacks its files."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError
from django.db import connection

from datasets_app.models import Dataset
from datasets_app.services import dataset_delete, dataset_import
from ftproject.core.storage import adapters_dir
from ftproject.system import backup as backups
from ftproject.system.backup import make_backup, missing_of, named_by
from ftproject.system.restoring import read_backup, require_empty
from tests.training_app.lora_folders import registered_adapter
from tests.training_app.world import Api, write_csv
from training_app.adapter_services import delete_adapter
from training_app.models import Adapter, TrainingRun

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "sqlite", reason="backup copies SQLite; PostgreSQL has pg_dump"),
]


@pytest.fixture
def place(api: Api, dataset: Dataset, data_dir: Path) -> Path:
    (data_dir / "secret_key").write_text("secret")
    registered_adapter()
    return data_dir


@pytest.fixture
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backups") / "monday"


def rows(target: Path, query: str) -> list[Any]:
    return sqlite3.connect(target / "database.sqlite3").execute(query).fetchall()


def whole(target: Path) -> bool:
    return missing_of(named_by(target / "database.sqlite3"), target) == []


def test_a_backup_holds_every_row_and_the_files_that_rows_name(place: Path, target: Path, dead: TrainingRun) -> None:
    backup = make_backup(target)
    assert whole(target)
    assert rows(target, "SELECT name FROM training_app_adapter") == [("drawn",)]
    assert (target / f"runs/training-{dead.pk}/checkpoints/checkpoint-4/checkpoint.json").is_file()
    assert (target / "secret_key").read_text() == "secret"
    assert backup == read_backup(target)
    assert target.stat().st_mode & 0o077 == 0
    assert list(target.rglob(".partial-*")) == []


def while_copying(monkeypatch: pytest.MonkeyPatch, name: str, meanwhile: Callable[[], object]) -> None:
    """Does something just before the first unit of that name is copied."""
    plain = backups.copy_unit
    done: list[str] = []

    def copy(source: Path, *rest: Any) -> None:
        if name in str(source) and not done:
            done.append(name)
            meanwhile()
        plain(source, *rest)

    monkeypatch.setattr(backups, "copy_unit", copy)


def test_an_adapter_that_is_deleted_meanwhile_is_in_neither_rows_nor_files(
    place: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    while_copying(monkeypatch, "adapters/drawn", lambda: delete_adapter(adapter=Adapter.objects.get()))
    make_backup(target)
    assert whole(target)
    assert rows(target, "SELECT name FROM training_app_adapter") == []


def test_a_dataset_that_is_uploaded_meanwhile_is_whole_or_absent(
    place: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = write_csv(place / "late.csv", [("a", "", "b")])
    while_copying(monkeypatch, "datasets/", lambda: dataset_import(path=late))
    make_backup(target)
    assert whole(target)
    assert len(rows(target, "SELECT id FROM datasets_app_dataset")) == 1
    assert len(list((target / "datasets").iterdir())) == 1


def test_a_dataset_that_is_deleted_meanwhile_is_absent(
    place: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = dataset_import(path=write_csv(place / "second.csv", [("a", "", "b")]))
    while_copying(monkeypatch, second.sha256, lambda: dataset_delete(dataset=second))
    make_backup(target)
    assert whole(target)
    assert rows(target, "SELECT filename FROM datasets_app_dataset") == [("rows.csv",)]


def test_a_row_whose_files_are_gone_refuses_the_backup_and_leaves_nothing(place: Path, target: Path) -> None:
    shutil.rmtree(adapters_dir() / "drawn")
    with pytest.raises(CommandError, match=r"adapters/drawn.*doctor"):
        make_backup(target)
    assert list(target.parent.iterdir()) == []


def test_a_full_disk_leaves_no_backup_that_looks_like_one(
    place: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(OSError, match="No space"):
        make_backup(target)
    assert list(target.parent.iterdir()) == []


def test_links_share_what_never_changes_and_nothing_else(place: Path, target: Path) -> None:
    (place / "logs").mkdir(exist_ok=True)
    (place / "logs" / "training-1.log").write_text("begun")
    make_backup(target, link=True)
    weights = "adapters/drawn/adapter_model.safetensors"
    assert (target / weights).stat().st_ino == (place / weights).stat().st_ino
    for name in ("logs/training-1.log", "secret_key"):
        assert (target / name).stat().st_ino != (place / name).stat().st_ino


@pytest.mark.parametrize("name", ["", "inside/backup"])
def test_a_place_that_is_taken_or_inside_is_refused(place: Path, name: str) -> None:
    with pytest.raises(CommandError, match=r"outside|already"):
        make_backup(place / name)


def test_a_backup_that_was_cut_or_leads_outside_is_not_restored(place: Path, target: Path) -> None:
    make_backup(target)
    manifest = json.loads((target / "backup.json").read_text())
    (target / "backup.json").write_text(json.dumps(manifest | {"files": {"../../etc/hostname": 1}}))
    with pytest.raises(CommandError, match="damaged"):
        read_backup(target)
    (target / "backup.json").write_text(json.dumps(manifest))
    (target / "adapters/drawn/adapter_config.json").write_text("{}")
    with pytest.raises(CommandError, match=r"damaged.*adapter_config"):
        read_backup(target)
    (target / "backup.json").unlink()
    with pytest.raises(CommandError, match="no backup"):
        read_backup(target)


def test_a_directory_with_a_database_is_not_restored_into(place: Path) -> None:
    (place / "database.sqlite3").touch()
    with pytest.raises(CommandError, match="holds a database already"):
        require_empty()
