"""How much disk a run wants, and what a disk that fills up while it trains costs: nothing that was saved."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection

from datasets_app.models import Dataset
from ftproject.core import persistence
from ftproject.core.storage import run_path
from ftproject.engine.backends.base import TrainingCallbacks, TrainingJob, TrainingResult
from ftproject.engine.backends.fake import FakeBackend
from ftproject.engine.configs import TrainingConfig
from ftproject.engine.memory_estimate import adapter_disk_mb
from tests.training_app.world import TEN_STEPS, Api, queued, run_process, train_with, trained_run
from training_app import disk
from training_app.configuration import resolve_config
from training_app.disk import Reserve, disk_mb_needed, require_free_disk, says_disk_full


def full_after_training(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The first files that cannot be written are the adapter's."""
    plain = FakeBackend.train

    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        plain(FakeBackend(), job, callbacks)
        raise error

    train_with(monkeypatch, train)


# Before


def test_the_adapters_rank_decides_how_much_is_wanted(api: Api) -> None:
    effective, _ = resolve_config(TrainingConfig())
    large = replace(effective, config=replace(effective.config, lora=replace(effective.config.lora, r=1024)))
    assert disk_mb_needed(effective) == disk.FREE_MB_TINY
    assert disk_mb_needed(large) == pytest.approx(adapter_disk_mb(large.model_path, large.config), abs=1)
    assert disk_mb_needed(large) > 5 * disk.FREE_MB_TINY


def test_each_checkpoint_that_is_kept_is_counted(api: Api) -> None:
    effective, _ = resolve_config(TrainingConfig())
    lora = replace(effective.config.lora, r=1024)
    needs = []
    for kept in (1, 2, 5):
        sft = replace(effective.config.sft, save_total_limit=kept)
        needs.append(disk_mb_needed(replace(effective, config=replace(effective.config, lora=lora, sft=sft))))
    assert needs[2] - needs[1] == pytest.approx(3 * (needs[1] - needs[0]), abs=3)


def test_a_model_whose_shape_is_not_known_here_gets_a_round_figure(api: Api) -> None:
    effective, _ = resolve_config(TrainingConfig())
    model = replace(effective.config.model, model_name="unsloth/Qwen3-VL-99B")
    unknown = replace(effective, model_path="unsloth/Qwen3-VL-99B", config=replace(effective.config, model=model))
    assert disk_mb_needed(unknown) == disk.FREE_MB


def test_a_refusal_says_what_is_needed_and_what_is_there(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_disk_mb", lambda: 63)
    problem = api.post("/api/training/start", {}).json()
    assert (problem["status"], problem["code"]) == (503, "disk_full")
    assert (problem["needed_mb"], problem["free_mb"]) == (64, 63)
    assert "Only 63 MB are free" in problem["detail"]
    assert "needs 64 MB" in problem["detail"]


def test_one_megabyte_more_is_enough(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    effective, _ = resolve_config(TrainingConfig())
    monkeypatch.setattr(disk, "free_disk_mb", lambda: 64)
    require_free_disk(effective)


# While it runs


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5504 vs 5402"),
        OperationalError("database or disk is full"),
    ],
    ids=["no space", "quota", "torch", "database"],
)
def test_a_disk_that_fills_up_is_named_and_the_checkpoint_kept(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        full_after_training(patch, error)
        run = run_process(queued(api, **TEN_STEPS))
    assert run.status == "error"
    assert (run.error or "").startswith("The disk is full")
    assert "The checkpoint of step 8 is kept." in (run.error or "")
    body = api.get(f"/api/training/runs/{run.pk}").json()
    assert body["can_resume"] is True
    assert list(run.logged.values_list("step", flat=True)) == list(range(1, 11))


def test_without_a_checkpoint_it_says_that_it_must_begin_again(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_after_training(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    run = run_process(queued(api, sft_config={"max_steps": 3, "save_steps": 100}))
    assert "had not saved a checkpoint yet" in (run.error or "")
    assert "start it again" in (run.error or "")


def test_another_failure_is_not_blamed_on_the_disk(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    full_after_training(monkeypatch, OSError(errno.EACCES, "Permission denied"))
    assert "disk is full" not in (run_process(queued(api)).error or "")


def test_a_cause_further_down_is_found_and_a_circle_ends() -> None:
    outer = RuntimeError("the adapter could not be written")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert says_disk_full(outer)
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__cause__ = second, first
    assert not says_disk_full(first)


class FullDisk:
    """A database on a full disk: it takes nothing as long as the run's reserve holds the space."""

    def __init__(self, reserve: Path) -> None:
        self.reserve, self.full = reserve, False

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if self.full and self.reserve.exists() and sql.startswith(("INSERT", "UPDATE")):
            raise OperationalError("database or disk is full")
        return execute(sql, params, many, context)


def test_when_the_database_is_on_the_full_disk_too_the_reason_and_the_steps_are_still_written(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "PAUSE_SECONDS", 0)
    plain = FakeBackend.train
    run = queued(api, **TEN_STEPS)
    on_disk = FullDisk(run_path("training", run.pk) / "reserve")

    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        on_disk.full = True
        return plain(FakeBackend(), job, callbacks)

    train_with(monkeypatch, train)
    with connection.execute_wrapper(on_disk):
        run_process(run)
    assert (run.error or "").startswith("The disk is full")
    assert not on_disk.reserve.exists()


def test_the_reserve_takes_real_space_and_goes_with_the_run(api: Api, dataset: Dataset, tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    assert reserve.path.stat().st_blocks * 512 >= disk.RESERVE_BYTES
    reserve.free()
    reserve.free()
    run = trained_run(api)
    assert not (run_path("training", run.pk) / "reserve").exists()


def test_a_reserve_that_cannot_be_written_stops_no_run(api: Api, dataset: Dataset) -> None:
    run = queued(api)
    (run_path("training", run.pk) / "reserve").mkdir(parents=True)  # no file can be written under that name
    assert run_process(run).status == "completed"
