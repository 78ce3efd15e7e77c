"""The work of a run process: phases in order, the split, skipped rows, and each way to end."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection

from datasets_app.models import Dataset
from ftproject.core import persistence
from ftproject.core.jobs import Job
from ftproject.core.models import Event
from ftproject.core.storage import adapters_dir, run_dir
from ftproject.engine.backends.base import (
    SkippedRow,
    TrainingCallbacks,
    TrainingError,
    TrainingJob,
    TrainingProgress,
    TrainingResult,
)
from ftproject.engine.backends.fake import FakeBackend
from ftproject.engine.splits import decode_ranges
from tests.training_app.world import (
    After,
    Api,
    claimed,
    load_dataset,
    numbered_rows,
    picture,
    queued,
    run_process,
    train_with,
    trained_run,
    work_queue,
)
from training_app import adapter_services, disk, progress, services
from training_app.models import Adapter, TrainingMetric, TrainingRun
from training_app.runner import execute_training


def statuses(run: TrainingRun) -> list[str]:
    return [event.data["status"] for event in Event.objects.filter(type="training_status", run_id=run.pk)]


def test_the_phases_come_in_order_and_once_each(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 3})
    assert statuses(run) == ["queued", "loading_model", "preparing_data", "training", "completed"]


def test_every_step_is_a_metric_and_an_event(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 25})
    assert list(run.logged.values_list("step", flat=True)) == list(range(1, 26))
    events = Event.objects.filter(type="training_progress", run_id=run.pk)
    assert [event.data["step"] for event in events] == list(range(1, 26))
    assert {"loss", "lr", "eta", "total_steps"} <= set(events[0].data)


def test_the_end_is_published_with_metrics_and_adapter(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    event = Event.objects.get(type="training_complete", run_id=run.pk)
    assert event.data["adapter_path"] == str(run.adapter.path)
    assert event.data["metrics"]["loss"] == run.metrics["loss"]
    assert event.data["stopped_early"] is False


def test_the_adapter_row_says_what_lies_in_the_folder(api: Api, dataset: Dataset) -> None:
    adapter = trained_run(api, lora_config={"r": 8}).adapter
    assert (adapter.r, adapter.base_model_name, adapter.effective) == (8, "tiny-qwen3-vl", True)
    assert adapter.path.parent == adapters_dir()
    assert adapter.size_bytes == sum(file.stat().st_size for file in adapter.path.iterdir())
    assert len(adapter.sha256) == 64


def test_the_provenance_names_dataset_mapping_and_split(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, holdout_fraction=0.5)
    provenance = json.loads((run.adapter.path / "provenance.json").read_text())
    assert provenance["dataset"]["sha256"] == dataset.sha256
    assert provenance["mapping"]["prompt_column"] == "prompt"
    assert provenance["split"] == {"trained_rows": run.trained_rows, "heldout_rows": run.heldout_rows}
    assert provenance["run_id"] == run.pk


def test_the_provenance_tells_what_was_changed_and_left_out_before_the_training_began(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        told.extend(job.effective.warnings)
        return plain(FakeBackend(), job, callbacks)

    plain = FakeBackend.train
    train_with(monkeypatch, train)
    load_dataset(tmp_path, [*numbered_rows(), ("Which digit?", "", "3")])
    run = trained_run(api)
    assert told == run.warnings
    assert [word for word in ("bf16", "adamw_8bit", "1 row skipped") if any(word in line for line in told)] == [
        "bf16",
        "adamw_8bit",
        "1 row skipped",
    ]


# Rows


def test_heldout_rows_are_not_trained_on(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, holdout_fraction=0.5)
    trained, heldout = set(decode_ranges(run.trained_rows)), set(decode_ranges(run.heldout_rows))
    assert trained
    assert heldout
    assert trained | heldout == set(range(12))
    assert not trained & heldout
    assert (run.num_train_rows, run.num_heldout_rows) == (len(trained), len(heldout))


def test_rows_that_share_an_image_stay_on_one_side(api: Api, tmp_path: Path) -> None:
    rows = [("Which digit?", picture(index // 3 * 9), str(index)) for index in range(24)]
    load_dataset(tmp_path, rows)
    run = trained_run(api, holdout_fraction=0.5)
    heldout = set(decode_ranges(run.heldout_rows))
    groups = [{index in heldout for index in range(first, first + 3)} for first in range(0, 24, 3)]
    assert all(len(sides) == 1 for sides in groups)
    assert {True} in groups


def test_skipped_rows_are_neither_trained_on_nor_held_out(api: Api, tmp_path: Path) -> None:
    rows = numbered_rows()
    rows[3], rows[5] = ("Which digit?", "", "3"), ("Which digit?", "data:image/png;base64,AAAA", "5")
    load_dataset(tmp_path, rows)
    run = trained_run(api, holdout_fraction=0.3)
    assert not {3, 5} & {*decode_ranges(run.trained_rows), *decode_ranges(run.heldout_rows)}
    assert run.num_skipped_rows == 2
    assert any("1 row skipped" in warning and "(row 3)" in warning for warning in run.warnings)


def test_rows_that_are_too_long_count_as_skipped(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FakeBackend().train

    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        callbacks.on_warning("1 rows skipped (row 2: 9000 tokens, more than max_seq_length 2048)")
        return replace(plain(job, callbacks), skipped_rows=[SkippedRow(2, "9000 tokens")])

    train_with(monkeypatch, train)
    run = trained_run(api)
    assert 2 not in decode_ranges(run.trained_rows)
    assert (run.num_train_rows, run.num_skipped_rows) == (11, 1)
    assert any("9000 tokens" in warning for warning in run.warnings)


def test_when_no_row_is_left_the_run_says_why(api: Api, tmp_path: Path) -> None:
    load_dataset(tmp_path, [("Which digit?", "data:image/png;base64,AAAA", "1")] * 3)
    run = run_process(queued(api))
    assert run.status == Job.Status.ERROR
    assert run.error is not None
    assert run.error.startswith("No row can be trained on: 3 rows skipped: image in 'image'")
    assert not Adapter.objects.exists()


# Stop


@pytest.mark.parametrize("questions", [0, 3, 13])
def test_a_stop_before_the_first_step_is_an_error_without_an_adapter(
    api: Api, dataset: Dataset, questions: int
) -> None:
    run = run_process(queued(api), After(questions))
    assert (run.status, run.error) == ("error", "Stopped before the first step: no adapter was made.")
    assert not Adapter.objects.exists()
    assert list(adapters_dir().iterdir()) == []


def test_a_training_that_took_no_step_leaves_no_adapter(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeBackend().train
    train_with(monkeypatch, lambda job, callbacks: replace(plain(job, callbacks), steps=0))
    run = run_process(queued(api))
    assert (run.status, run.error) == (Job.Status.ERROR, "Stopped before the first step: no adapter was made.")
    assert not Adapter.objects.exists()
    assert not list(adapters_dir().iterdir())


def test_a_stop_later_completes_with_a_usable_adapter(api: Api, dataset: Dataset) -> None:
    run = run_process(queued(api, sft_config={"max_steps": 50}), After(20))
    assert (run.status, run.stopped_early) == ("completed", True)
    assert 0 < run.current_step < 50
    assert run.total_steps == 50
    assert run.adapter.path.is_dir()
    assert Event.objects.get(type="training_complete").data["stopped_early"] is True


def test_the_phases_do_not_overwrite_stopping(api: Api, dataset: Dataset) -> None:
    run = queued(api)
    claimed(run)
    services.stop_training(run=run)
    execute_training(TrainingRun.objects.get(), lambda: False)
    assert "preparing_data" not in statuses(run)
    assert TrainingRun.objects.get().status == "completed"


# Faults


def test_a_loss_that_is_not_finite_ends_the_run(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        callbacks.on_phase("training", "training")
        callbacks.on_progress(TrainingProgress(1, 9, loss=2.0))
        callbacks.on_progress(TrainingProgress(2, 9, loss=math.nan))
        raise AssertionError("the second step must end the training")

    train_with(monkeypatch, train)
    run = run_process(queued(api))
    assert run.status == "error"
    assert "loss of step 2 is not finite" in (run.error or "")
    assert list(TrainingMetric.objects.values_list("step", "loss")) == [(1, 2.0), (2, None)]
    assert not Adapter.objects.exists()


def test_the_engines_refusal_is_the_runs_error(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        callbacks.on_progress(TrainingProgress(1, 9, loss=2.0))
        raise TrainingError("out_of_memory", "the device ran out of memory; lower the batch size")

    train_with(monkeypatch, train)
    run = run_process(queued(api))
    assert (run.status, run.error) == ("error", "The device ran out of memory; lower the batch size")
    assert run.logged.count() == 1
    event = Event.objects.get(type="training_error")
    assert event.data == {"run_id": run.pk, "error": run.error}


def test_a_failed_run_does_not_hold_up_the_next(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = FakeBackend().train, []

    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        calls.append(job)
        if len(calls) == 1:
            raise RuntimeError("boom")
        return plain(job, callbacks)

    train_with(monkeypatch, train)
    first, second = queued(api), queued(api)
    assert work_queue() == [f"training:{first.pk} error", f"training:{second.pk} completed"]


def test_a_disk_that_filled_up_while_the_run_waited_is_named(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = queued(api)
    monkeypatch.setattr(disk, "FREE_MB_TINY", 10**9)
    assert "MB are free" in (run_process(run).error or "")


def test_a_run_that_was_ended_elsewhere_registers_no_adapter(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeBackend().train

    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        result = plain(job, callbacks)
        TrainingRun.objects.update(status="error", error="reaped")
        return result

    train_with(monkeypatch, train)
    run = claimed(queued(api))
    with pytest.raises(adapter_services.RunLostError):
        execute_training(run, lambda: False)
    assert not Adapter.objects.exists()
    assert TrainingRun.objects.get().error == "reaped"


def test_the_checkpoints_of_a_completed_run_are_removed(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeBackend().train

    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        (job.work_dir / "checkpoint-1").mkdir(parents=True)
        return plain(job, callbacks)

    train_with(monkeypatch, train)
    run = trained_run(api)
    assert not (run_dir("training", run.pk) / "checkpoints").exists()


class LockedDatabase:
    """Refuses the first writes to a table, as a database does that another process holds."""

    def __init__(self, table: str, times: int) -> None:
        self.table, self.times = table, times

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if self.times and sql.startswith(("INSERT", "UPDATE")) and self.table in sql:
            self.times -= 1
            raise OperationalError("database is locked")
        return execute(sql, params, many, context)


@pytest.mark.parametrize(
    ("table", "times"), [("training_app_trainingmetric", 3), ("training_app_adapter", 4), ("core_event", 2)]
)
def test_a_database_that_is_locked_for_a_while_costs_no_training(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, table: str, times: int
) -> None:
    monkeypatch.setattr(persistence, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(progress, "WRITE_SECONDS", 0)
    run = claimed(queued(api, sft_config={"max_steps": 9}))
    with connection.execute_wrapper(LockedDatabase(table, times)):
        execute_training(run, lambda: False)
    run.refresh_from_db()
    assert run.status == "completed"
    assert list(run.logged.values_list("step", flat=True)) == list(range(1, 10))
    assert run.adapter.path.is_dir()


def test_a_database_that_stays_locked_keeps_the_folder_for_rescue(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persistence, "PAUSE_SECONDS", 0)
    run = claimed(queued(api))
    with connection.execute_wrapper(LockedDatabase("training_app_adapter", 99)), pytest.raises(OperationalError):
        execute_training(run, lambda: False)
    assert not Adapter.objects.exists()
    assert len(list(adapters_dir().iterdir())) == 1


def test_an_adapter_whose_commit_was_reported_as_failed_is_registered_once(
    api: Api, dataset: Dataset, broken_commits: list[object]
) -> None:
    run = claimed(queued(api, sft_config={"max_steps": 3}))
    execute_training(run, lambda: False)
    run.refresh_from_db()
    assert (run.status, run.error) == ("completed", None)
    assert Adapter.objects.get().path.is_dir()
    assert list(run.logged.values_list("step", flat=True)) == [1, 2, 3]
