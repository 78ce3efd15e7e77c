"""Each thing that may be wrong with a data directory: found, named with its remedy, fixed where that loses nothing."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django_q.models import OrmQ

from datasets_app.models import Dataset, ImageArchiveEntry
from ftproject.core.jobs import Job
from ftproject.core.lease import acquire_lease, lease_holder
from ftproject.core.processes import this_process
from ftproject.core.storage import adapters_dir, datasets_dir, models_dir, runs_dir
from ftproject.core.tasks import drain_flag
from ftproject.system.doctor import database, machine
from ftproject.system.doctor.examination import examine, fix, made
from ftproject.system.doctor.findings import Finding
from ftproject.system.serving import prepare_data_dir, sole_server
from tests.core.jobs import make_training
from tests.training_app.lora_folders import folder_members, registered_adapter, write_adapter_folder, zip_of
from tests.training_app.world import Api, trained_run
from training_app.adapter_services import delete_adapter
from training_app.import_services import adapter_import
from training_app.models import Adapter, AdapterMerge, TrainingRun

pytestmark = pytest.mark.django_db
GONE = "{host}:4194305:1.00"
Break = Callable[["Place"], object]


class Place:
    """A data directory with a dataset and an adapter, and the ways to break it."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.folder, self.dataset = folder, dataset
        self.adapter = registered_adapter()

    @property
    def weights(self) -> Path:
        return self.adapter.path / "adapter_model.safetensors"

    def gone_process(self) -> str:
        return GONE.format(host=this_process().rsplit(":", 2)[0])


@pytest.fixture
def place(api: Api, dataset: Dataset, data_dir: Path) -> Place:
    (data_dir / "secret_key").touch(0o600)
    return Place(data_dir, dataset)


def of_rows() -> list[Finding]:
    """Without those that speak of this machine."""
    known = {"little_disk", "network_disk", "gpu", "gpu_unused", "gpu_not_seen", "package_differs"}
    return [finding for finding in examine() if finding.code not in known]


def codes() -> list[str]:
    return [finding.code for finding in of_rows()]


def old(path: Path) -> Path:
    os.utime(path, (time.time() - 7200,) * 2)
    return path


def test_of_a_sound_directory_nothing_is_said(place: Place) -> None:
    assert of_rows() == []


def forget_rows(place: Place) -> None:
    """As a kill between publishing the table and its row leaves it."""
    Dataset.objects.all().delete()


def cut_table(place: Place) -> None:
    path = place.dataset.table_path
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(bytes(data))


def kill_import(place: Place) -> None:
    write_adapter_folder(adapters_dir() / "half")


def kill_deletion(place: Place) -> None:
    place.adapter.path.rename(adapters_dir() / f".partial-{place.adapter.name}-0123abcd")


def leave_partial(place: Place) -> None:
    (adapters_dir() / ".partial-x-1").mkdir()
    old(adapters_dir() / ".partial-x-1")


def leave_checkpoint(place: Place) -> None:
    (runs_dir() / "training-77" / "checkpoints" / ".writing-5").mkdir(parents=True)


def kill_run(place: Place) -> None:
    make_training(status="training", supervisor=place.gone_process())


def kill_web(place: Place) -> None:
    acquire_lease(f"inference:{place.gone_process()}")


def keep_lease(place: Place) -> None:
    acquire_lease("training:999")


BROKEN: dict[str, tuple[Break, bool]] = {
    "table_broken": (cut_table, False),
    "table_unlisted": (forget_rows, False),
    "adapter_missing": (lambda place: shutil.rmtree(place.adapter.path), False),
    "adapter_unreadable": (lambda place: place.weights.write_bytes(b"\xff" * 100), False),
    "adapter_changed": (lambda place: Adapter.objects.update(sha256="0" * 64), False),
    "base_missing": (lambda place: Adapter.objects.update(base_model_name="my-own"), False),
    "adapter_hidden": (kill_deletion, True),
    "adapter_unlisted": (kill_import, True),
    "images_missing": (
        lambda place: ImageArchiveEntry.objects.create(dataset=place.dataset, path="a", key="a", digest="ab" * 32),
        False,
    ),
    "half_written": (leave_partial, True),
    "run_leftovers": (leave_checkpoint, True),
    "run_stuck": (kill_run, True),
    "lease_stale": (kill_web, True),
    "messages_stale": (lambda place: OrmQ.objects.create(key="gpu", payload="of a killed cluster"), True),
    "draining": (lambda place: drain_flag().touch(), True),
    "secret_readable": (lambda place: (place.folder / "secret_key").chmod(0o644), True),
}


@pytest.mark.parametrize("code", BROKEN)
def test_what_is_broken_is_named_with_its_remedy_and_fixed_where_that_is_safe(place: Place, code: str) -> None:
    damage, fixable = BROKEN[code]
    damage(place)
    found = [finding for finding in of_rows() if finding.code == code]
    assert len(found) == 1, codes()
    assert found[0].remedy
    assert (found[0].fix is not None) == fixable
    files = sorted(path for path in place.folder.rglob("*") if path.is_file() and ".partial" not in str(path))
    assert len(fix(found)) == fixable
    assert (code not in codes()) == fixable
    if code != "run_leftovers":  # whose files are the finding
        kept = {str(path) for path in place.folder.rglob("*")}
        assert [path for path in files if str(path) not in kept and path.name != "draining"] == []


def test_a_lease_of_a_run_that_is_gone_is_stale_and_one_of_a_run_that_waits_is_not(place: Place) -> None:
    keep_lease(place)
    assert codes() == ["lease_stale"]
    mapping = place.dataset.mappings.get()
    TrainingRun.objects.create(pk=999, dataset=place.dataset, mapping=mapping, model_name="tiny")
    assert codes() == ["runs_wait", "no_bell"]
    assert lease_holder() == "training:999"


def test_an_adopted_import_can_be_used_and_its_name_is_taken_in_words(place: Place) -> None:
    kill_import(place)
    file = place.folder / "half.zip"
    file.write_bytes(zip_of(folder_members(write_adapter_folder(place.folder / "other"))))
    with pytest.raises(Exception, match="already") as refusal:
        adapter_import(file=file, name="half")
    assert "doctor --fix" in refusal.value.hint  # type: ignore[attr-defined]
    fix(of_rows())
    adapter = Adapter.objects.get(name="half")
    assert (adapter.r, adapter.run) == (4, None)
    assert adapter.base_model_name == place.adapter.base_model_name


def test_a_folder_that_is_no_safe_adapter_is_left_as_it_is(place: Place) -> None:
    kill_import(place)
    (adapters_dir() / "half" / "model.bin").write_bytes(b"pickle")
    assert "left as it is" in fix(of_rows())[0]
    assert (adapters_dir() / "half").is_dir()
    assert not Adapter.objects.filter(name="half").exists()


def test_a_deletion_that_was_cut_off_is_undone_by_the_next_start_and_can_be_made_again(place: Place) -> None:
    kill_deletion(place)
    old(next(adapters_dir().glob(".partial-*")))  # the sweep would take it
    said: list[str] = []
    prepare_data_dir(said.append)
    assert place.adapter.name in said[0]
    assert codes() == []
    delete_adapter(adapter=place.adapter)
    assert codes() == []


def test_the_hidden_folder_of_another_adapter_is_not_put_back(place: Place) -> None:
    kill_deletion(place)
    Adapter.objects.update(sha256="0" * 64)
    assert codes() == ["adapter_missing"]


def test_an_adapter_whose_row_could_not_be_written_is_listed_with_its_run(
    api: Api, dataset: Dataset, data_dir: Path
) -> None:
    run = trained_run(api)
    adapter = run.adapter
    config = adapter.path / "adapter_config.json"
    shutil.rmtree(data_dir / "lora", ignore_errors=True)
    drawn = write_adapter_folder(data_dir / "lora")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(drawn / name, config.with_name(name))  # the fake backend's weights are none
    Adapter.objects.all().delete()
    TrainingRun.objects.update(status=Job.Status.ERROR)
    assert "is listed" in " ".join(fix(of_rows()))
    assert Adapter.objects.get().run == run


def test_a_merge_whose_end_was_not_written_leaves_a_model_that_is_named(place: Place) -> None:
    folder = models_dir() / "merged"
    folder.mkdir()
    (folder / "provenance.json").write_text(json.dumps({"merge_id": 3}))
    assert codes() == ["model_unlisted"]
    AdapterMerge.objects.create(adapter_name="a", base_model_name="b", model_name="merged", status="completed")
    assert codes() == []
    shutil.rmtree(folder)
    assert codes() == ["model_missing"]


def test_a_damaged_database_is_an_error_and_nothing_more_is_asked_of_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(execute: Any, sql: str, *call: Any) -> Any:
        if "integrity_check" in sql:
            return execute("SELECT 'row 7 missing from index'", *call)
        return execute(sql, *call)

    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL looks after itself")
    Adapter.objects.update(sha256="0" * 64)
    with connection.execute_wrapper(damaged):
        assert codes() == ["database_damaged"]


def test_a_database_of_an_earlier_version_is_named(place: Place) -> None:
    newest = MigrationLoader(connection).graph.leaf_nodes("sessions_app")[0][1]
    rows = MigrationRecorder.Migration.objects.filter(app="sessions_app", name=newest)
    assert rows.update(name="9999_later") == 1
    found = {finding.code: finding for finding in made(database.check_migrations)}
    assert set(found) == {"not_migrated", "newer_database"}
    assert "sessions_app.9999_later" in found["newer_database"].message
    assert f"sessions_app.{newest}" in found["not_migrated"].message


def test_a_folder_that_cannot_be_written_to_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, dir: Path, **__: Any) -> Any:  # noqa: A002
        if dir.name == "images":
            raise PermissionError(13, "Permission denied")
        return open(os.devnull, "wb")

    (place.folder / "images").mkdir(exist_ok=True)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert [finding.code for finding in machine.check_folders()] == ["not_writable"]


def test_a_check_that_fails_itself_is_a_finding(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.folder / "secret_key").unlink()
    assert codes() == ["check_failed"]


def test_a_running_server_is_named_with_its_process(place: Place) -> None:
    with sole_server("http://127.0.0.1:8123"):
        found = of_rows()
    assert [finding.code for finding in found] == ["server_runs", "queue_dead"]
    assert "127.0.0.1:8123" in found[0].message
    assert str(os.getpid()) in found[0].message
    assert codes() == [], "what a killed server leaves in the file is no server"


def test_the_command_says_it_to_people_and_programs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    Adapter.objects.update(sha256="0" * 64)
    with pytest.raises(SystemExit) as ended:
        call_command("doctor", "--json")
    assert ended.value.code == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert "adapter_changed" in [finding["code"] for finding in said["findings"]]
    with pytest.raises(SystemExit):
        call_command("doctor")
    assert "adapter_changed: The weights of the adapter drawn" in capsys.readouterr().out


def test_what_can_be_fixed_is_fixed_and_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    kill_deletion(place)
    call_command("doctor", "--fix")
    said = capsys.readouterr().out
    assert "fixed: drawn is listed as before." in said
    assert "Nothing is wrong" in said
    assert datasets_dir().exists()
