"""What may go is shown first, and what a run, an adapter or a dataset needs never is among it."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.utils import timezone

from datasets_app.image_cache import image_path, remember_image, store_image, url_entry
from datasets_app.models import Dataset, ImageArchiveEntry
from ftproject.core.events import publish
from ftproject.core.jobs import Job
from ftproject.core.models import Event
from ftproject.core.storage import datasets_dir, log_path, run_dir
from ftproject.engine.images import decode_data_uri
from ftproject.system.pruning import prunable
from tests.system.test_doctor import old
from tests.training_app.world import Api, claimed, load_dataset, picture, queued, run_process, trained_run
from training_app.checkpoints import checkpoints_dir
from training_app.models import Adapter, TrainingRun

pytestmark = pytest.mark.django_db
LONG_AGO = timedelta(days=40)


def prune(*words: str) -> list[str]:
    call_command("prune", *words, "--yes", verbosity=0)
    return shown(*words)


def shown(*words: str) -> list[str]:
    return [item.name for item in prunable(list(words), days=30)]


def age(run: TrainingRun) -> TrainingRun:
    TrainingRun.objects.filter(pk=run.pk).update(completed_at=timezone.now() - LONG_AGO)
    return run


def test_nothing_goes_by_the_preview(api: Api, dead: TrainingRun, capsys: pytest.CaptureFixture[str]) -> None:
    age(dead)
    for words in ((), ("--dry-run",), ("--json",)):
        call_command("prune", *words)
    said = capsys.readouterr().out
    assert "can go: --yes removes them" in said
    assert checkpoints_dir(dead).is_dir()


def test_programs_get_every_item_with_its_bytes(
    api: Api, dead: TrainingRun, capsys: pytest.CaptureFixture[str]
) -> None:
    age(dead)
    call_command("prune", "checkpoints", "--json")
    said = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in checkpoints_dir(dead).rglob("*") if path.is_file())
    assert (said["removed"], said["size_bytes"], said["items"][0]["size_bytes"]) == (False, size, size)
    call_command("prune", "checkpoints", "--json", "--yes")
    assert json.loads(capsys.readouterr().out)["removed"] is True
    assert not checkpoints_dir(dead).exists()


def test_old_events_of_ended_runs_go_and_those_of_a_running_one_stay(api: Api, dataset: Dataset) -> None:
    ended, running = queued(api), claimed(queued(api))
    TrainingRun.objects.filter(pk=ended.pk).update(status=Job.Status.COMPLETED)
    Event.objects.all().delete()
    for run in (ended, running, ended):
        publish("training_error", {"run_id": run.pk, "error": "x"}, run_kind=run.KIND, run_id=run.pk)
    Event.objects.filter(pk__in=Event.objects.values_list("pk", flat=True)[:2]).update(
        created_at=timezone.now() - LONG_AGO
    )
    assert prune("events") == []
    assert list(Event.objects.values_list("run_id", flat=True)) == [running.pk, ended.pk]


def test_young_checkpoints_and_those_of_running_runs_stay(api: Api, dead: TrainingRun) -> None:
    assert shown("checkpoints") == []
    TrainingRun.objects.filter(pk=dead.pk).update(status=Job.Status.TRAINING, completed_at=None)
    assert shown("checkpoints") == []


def test_checkpoints_that_a_waiting_continuation_needs_stay(api: Api, dead: TrainingRun) -> None:
    age(dead)
    number = api.post(f"/api/training/runs/{dead.pk}/resume").json()["run_id"]
    assert prune("checkpoints") == []
    assert checkpoints_dir(dead).is_dir()
    assert run_process(TrainingRun.objects.get(pk=number)).status == "completed"


def test_checkpoints_that_a_dead_continuation_could_be_resumed_from_stay_while_it_is_young(
    api: Api, dead: TrainingRun
) -> None:
    age(dead)
    other = claimed(TrainingRun.objects.get(pk=api.post(f"/api/training/runs/{dead.pk}/resume").json()["run_id"]))
    other.finish(Job.Status.ERROR, error="killed before its first checkpoint")
    assert shown("checkpoints") == []
    age(other)
    assert shown("checkpoints") == [f"of training:{dead.pk}"]


def test_a_continuation_that_comes_between_the_look_and_the_removal_keeps_them(
    api: Api, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(dead)
    items = prunable(["checkpoints"], days=30)
    api.post(f"/api/training/runs/{dead.pk}/resume")
    for item in items:
        item.remove()
    assert checkpoints_dir(dead).is_dir()


def test_the_work_folder_of_an_old_run_goes_without_its_checkpoints_and_its_adapter(
    api: Api, dead: TrainingRun
) -> None:
    run = age(trained_run(api))
    age(dead)
    for each in (run, dead):
        (run_dir("training", each.pk) / "tensorboard").mkdir(exist_ok=True)
        (run_dir("training", each.pk) / "tensorboard" / "events").write_bytes(b"x" * 100)
    gone = run_dir("training", 999)
    log_path("training", 998).write_text("of a run that was deleted")
    log_path("training", run.pk).write_text("of a run that is there")
    assert prune("runs") == []
    assert not gone.exists()
    assert not log_path("training", 998).exists()
    assert log_path("training", run.pk).exists()
    assert [path.name for path in run_dir("training", dead.pk).iterdir()] == ["checkpoints"]
    assert Adapter.objects.get().path.is_dir()


def cached(shade: int) -> Path:
    path = store_image(decode_data_uri(picture(shade)))
    return old_days(path)


def old_days(path: Path) -> Path:
    os.utime(path, (time.time() - LONG_AGO.total_seconds(),) * 2)
    return path


@pytest.fixture
def linked(api: Api, tmp_path: Path) -> Any:
    """A dataset that names one image by content, one by URL and one by a path of an archive."""
    rows = [("a", picture(1), "1"), ("b", "https://example.org/2.png", "2"), ("c", "folder/3.png", "3")]
    return load_dataset(tmp_path, rows)


def test_images_that_a_dataset_names_stay_and_others_go(api: Api, linked: Dataset) -> None:
    of_url, of_archive = cached(2), cached(3)
    remember_image("https://example.org/2.png", of_url)
    remember_image("https://example.org/other.png", cached(5))
    ImageArchiveEntry.objects.create(dataset=linked, path="folder/3.png", key="3", digest=of_archive.name)
    of_content, unnamed, young = cached(1), cached(4), store_image(decode_data_uri(picture(6)))
    for url in ("2", "other"):
        old_days(url_entry(f"https://example.org/{url}.png"))
    assert prune("images") == []
    assert [path.exists() for path in (of_content, of_url, of_archive, young)] == [True] * 4
    assert [path.exists() for path in (unnamed, image_path(cached(5).name))] == [False, True]  # cached anew just now
    assert url_entry("https://example.org/2.png").exists()
    assert not url_entry("https://example.org/other.png").exists()


def test_every_mapping_that_a_dataset_ever_had_counts_and_without_one_every_column(api: Api, tmp_path: Path) -> None:
    kept = cached(7)
    load_dataset(tmp_path, [("a", picture(7), "1")], mapped=False)
    assert shown("images") == []
    assert kept.exists()


def test_no_image_goes_while_a_run_is_at_work(api: Api, linked: Dataset) -> None:
    cached(4)
    assert shown("images") == ["images that no dataset names"]
    claimed(queued(api))
    assert shown("images") == []


def test_a_table_without_its_dataset_goes_and_one_that_is_being_published_stays(api: Api, dataset: Dataset) -> None:
    old(dataset.table_path)
    young = datasets_dir() / f"{'1' * 64}.parquet"
    young.write_bytes(b"x")
    lost = datasets_dir() / f"{'2' * 64}.parquet"
    lost.write_bytes(b"x")
    old(lost)
    assert prune("tables") == []
    assert [path.exists() for path in (dataset.table_path, young, lost)] == [True, True, False]
