"""Continuing a run that was stopped or died: the new run, what it takes over, and everything that is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datasets_app.models import Dataset
from datasets_app.preparation import prepare_rows
from ftproject.core.models import Event
from ftproject.core.storage import models_dir
from ftproject.engine.backends.base import TrainingCallbacks, TrainingJob, TrainingResult
from ftproject.engine.backends.fake import FakeBackend
from ftproject.engine.configs import TINY_MODEL_PATH
from tests.training_app.test_start import refused
from tests.training_app.world import (
    TEN_STEPS,
    After,
    Api,
    claimed,
    die_after,
    load_dataset,
    numbered_rows,
    queued,
    run_process,
    train_with,
    trained_run,
    work_queue,
)
from training_app import disk
from training_app.checkpoints import checkpoints_dir
from training_app.models import Adapter, TrainingRun
from training_app.services import delete_run, stop_training

RUNS = "/api/training/runs"


def resume_run(api: Api, run: TrainingRun, **headers: str) -> Any:
    return api.post(f"{RUNS}/{run.pk}/resume", **headers)


def resumed(api: Api, run: TrainingRun) -> TrainingRun:
    answer = resume_run(api, run)
    assert answer.status_code == 202, answer.content
    return TrainingRun.objects.get(pk=answer.json()["run_id"])


def facts(api: Api, run: TrainingRun) -> dict[str, Any]:
    body: dict[str, Any] = api.get(f"{RUNS}/{run.pk}").json()
    return body


@pytest.fixture
def stopped(api: Api, dataset: Dataset) -> TrainingRun:
    """A run that was asked to stop while it trained."""
    run = queued(api, sft_config={"max_steps": 50, "save_steps": 4})
    asked = After(20)

    def should_stop() -> bool:
        if not asked():
            return False
        stop_training(run=TrainingRun.objects.get(pk=run.pk))
        return True

    run_process(run, should_stop)
    assert (run.status, run.stopped_early) == ("completed", True), run.error
    return run


# What the new run is


def test_a_dead_run_goes_on_from_its_last_checkpoint_as_a_new_run(api: Api, dead: TrainingRun) -> None:
    body = resume_run(api, dead).json()
    run = TrainingRun.objects.get(pk=body.pop("run_id"))
    assert body == {
        "status": "started",
        "resumed_from": dead.pk,
        "resumed_step": 4,
        "total_steps": 10,
        "model_name": "tiny-qwen3-vl",
        "device": "cpu",
        "warnings": run.warnings,
    }
    assert run.config == dead.config
    assert (run.dataset, run.mapping, run.requested_config) == (dead.dataset, dead.mapping, dead.requested_config)
    work_queue()
    run.refresh_from_db()
    assert (run.status, run.current_step, run.stopped_early) == ("completed", 10, False)
    assert run.adapter.path.is_dir()


def test_the_old_run_stays_as_it_ended(api: Api, dead: TrainingRun) -> None:
    before = TrainingRun.objects.filter(pk=dead.pk).values().get()
    resumed(api, dead)
    work_queue()
    assert TrainingRun.objects.filter(pk=dead.pk).values().get() == before
    assert list(dead.logged.values_list("step", flat=True)) == [1, 2, 3, 4, 5, 6]


def test_the_curve_of_the_new_run_is_whole_and_without_the_lost_steps(api: Api, dead: TrainingRun) -> None:
    run = resumed(api, dead)
    assert list(run.logged.values_list("step", flat=True)) == [1, 2, 3, 4]
    copied = ("step", "loss", "learning_rate", "grad_norm", "epoch", "created_at")
    assert list(run.logged.values(*copied)) == list(dead.logged.filter(step__lte=4).values(*copied))
    work_queue()
    assert list(run.logged.values_list("step", flat=True)) == list(range(1, 11))


def test_a_held_out_loss_of_an_earlier_step_is_still_shown(api: Api, dead: TrainingRun) -> None:
    dead.logged.filter(step=2).update(eval_loss=1.5, eval_exact_match=0.25)
    dead.logged.filter(step=6).update(eval_loss=0.1)  # behind the checkpoint: it will be measured again
    run = resumed(api, dead)
    assert (run.eval_loss, run.eval_exact_match, run.eval_token_f1) == (1.5, 0.25, None)


def test_the_status_stands_at_the_checkpoint_from_the_start(api: Api, dead: TrainingRun) -> None:
    run = resumed(api, dead)
    status = api.get("/api/training/status").json()
    assert (status["run_id"], status["status"]) == (run.pk, "queued")
    assert (status["current_step"], status["total_steps"]) == (4, 10)
    assert (status["resumed_from"], status["resumed_step"]) == (dead.pk, 4)
    assert status["loss"] == dead.logged.get(step=4).loss
    assert f"continues run {dead.pk} from step 4" in status["message"]


def test_the_events_say_where_it_goes_on(api: Api, dead: TrainingRun) -> None:
    run = resumed(api, dead)
    work_queue()
    events = Event.objects.filter(run_kind="training", run_id=run.pk)
    messages = [event.data["message"] for event in events.filter(type="training_status")]
    assert f"Continues run {dead.pk} from step 4" in messages
    steps = [event.data["step"] for event in events.filter(type="training_progress")]
    assert steps == [5, 6, 7, 8, 9, 10]


def test_the_log_and_the_provenance_say_it_too(api: Api, dead: TrainingRun, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="training_app.runner")
    run = resumed(api, dead)
    work_queue()
    assert f"Continues run {dead.pk} from step 4" in caplog.text
    provenance = json.loads((run.adapter.path / "provenance.json").read_text())
    assert provenance["resumed_from"] == {"run_id": dead.pk, "step": 4}


def test_a_stopped_run_can_go_on_too_and_keeps_its_own_adapter(api: Api, stopped: TrainingRun) -> None:
    assert facts(api, stopped)["can_resume"] is True
    run = resumed(api, stopped)
    assert run.resumed_step == stopped.current_step
    work_queue()
    run.refresh_from_db()
    assert (run.status, run.current_step) == ("completed", 50)
    assert Adapter.objects.filter(run__in=[run, stopped]).count() == 2


def test_behind_another_run_it_waits_with_its_place(api: Api, dead: TrainingRun) -> None:
    other = queued(api)
    body = resume_run(api, dead).json()
    assert (body["status"], body["queue_position"]) == ("queued", 2)
    assert work_queue()[0] == f"training:{other.pk} completed"


def test_another_device_is_said(api: Api, dead: TrainingRun) -> None:
    TrainingRun.objects.filter(pk=dead.pk).update(device="NVIDIA H200")
    assert any("NVIDIA H200" in warning and "cpu" in warning for warning in resume_run(api, dead).json()["warnings"])


def test_what_the_device_changed_about_the_request_is_said_of_the_continuation_too(api: Api, dead: TrainingRun) -> None:
    changed = [warning for warning in dead.warnings if "bf16" in warning or "adamw_8bit" in warning]
    assert len(changed) == 2
    assert resumed(api, dead).warnings == changed


def test_a_request_of_another_version_does_not_keep_a_run_from_going_on(api: Api, dead: TrainingRun) -> None:
    TrainingRun.objects.filter(pk=dead.pk).update(requested_config={"colour": "red"})
    assert resumed(api, dead).warnings == []


# A continuation that dies as well


def test_one_that_died_before_its_own_checkpoint_goes_on_from_the_first_runs(
    api: Api, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = resumed(api, dead)
    with monkeypatch.context() as patch:
        die_after(patch, 7)
        run_process(second)
    third = resumed(api, second)
    assert (third.resumed_from_id, third.resumed_step) == (second.pk, 4)
    assert list(third.logged.values_list("step", flat=True)) == [1, 2, 3, 4]
    work_queue()
    third.refresh_from_db()
    assert (third.status, third.current_step) == ("completed", 10)
    assert [checkpoints_dir(run).exists() for run in (dead, second, third)] == [False, False, False]


def test_one_that_died_later_goes_on_from_its_own(api: Api, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    second = resumed(api, dead)
    with monkeypatch.context() as patch:
        die_after(patch, 9)
        run_process(second)
    assert resumed(api, second).resumed_step == 8


def test_after_a_failed_continuation_the_first_run_can_be_resumed_again(
    api: Api, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = resumed(api, dead)
    with monkeypatch.context() as patch:
        die_after(patch, 5)
        run_process(second)
    assert facts(api, dead)["can_resume"] is True
    assert resumed(api, dead).resumed_step == 4


def test_a_cancelled_continuation_counts_as_none(api: Api, dead: TrainingRun) -> None:
    stop_training(run=resumed(api, dead))
    assert facts(api, dead)["can_resume"] is True


# Checkpoints


def test_a_run_that_completes_frees_its_checkpoints_and_those_it_went_on_from(api: Api, dead: TrainingRun) -> None:
    run = resumed(api, dead)
    assert checkpoints_dir(dead).is_dir()
    work_queue()
    assert not checkpoints_dir(run).exists()
    assert not checkpoints_dir(dead).exists()


def test_stopped_and_dead_runs_keep_theirs_until_they_are_deleted(
    api: Api, dead: TrainingRun, stopped: TrainingRun
) -> None:
    assert [path.name for path in checkpoints_dir(dead).iterdir()] == ["checkpoint-4"]
    assert checkpoints_dir(stopped).is_dir()
    delete_run(run=dead)
    assert not checkpoints_dir(dead).exists()


def test_looking_at_runs_makes_no_folders(api: Api, dead: TrainingRun) -> None:
    shutil.rmtree(checkpoints_dir(dead).parent)
    api.get(RUNS)
    assert not checkpoints_dir(dead).parent.exists()


# Refusals


def test_an_unknown_run_is_404(api: Api) -> None:
    assert api.post(f"{RUNS}/999/resume").json()["code"] == "run_not_found"


@pytest.mark.parametrize("body", [{"dataset_id": 1}, {"sft_config": {"max_steps": 99}}, {"adapter_name": "mine"}])
def test_nothing_of_the_run_can_be_changed_on_the_way(api: Api, dead: TrainingRun, body: dict[str, Any]) -> None:
    answer = api.post(f"{RUNS}/{dead.pk}/resume", body)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == next(iter(body))
    assert TrainingRun.objects.count() == 1


def test_a_waiting_or_running_run_is_a_conflict(api: Api, dataset: Dataset) -> None:
    run = queued(api)
    problem = refused(resume_run(api, run), 409, "run_active")
    assert f"runs/{run.pk}/stop" in problem["hint"]
    claimed(run)
    refused(resume_run(api, run), 409, "run_active")
    assert facts(api, run)["can_resume"] is False


def test_a_complete_run_has_nothing_left_to_do(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    assert "complete" in refused(resume_run(api, run), 409, "not_resumable")["detail"]
    assert (facts(api, run)["can_resume"], facts(api, run)["resume_reason"]) == (
        False,
        "It is complete: nothing is left to do.",
    )


def test_a_run_that_early_stopping_ended_is_complete_and_keeps_no_checkpoints(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeBackend.train

    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        callbacks.should_stop = After(4)  # type: ignore[method-assign]  # patience, not the user
        return replace(plain(FakeBackend(), job, callbacks), ended_by="patience")

    train_with(monkeypatch, train)
    settings = {"max_steps": 9, "eval_steps": 2, "early_stopping_patience": 1}
    run = trained_run(api, sft_config=settings, holdout_fraction=0.5)
    assert run.stopped_early is True
    assert facts(api, run)["can_resume"] is False
    assert not checkpoints_dir(run).exists()


def test_a_run_that_was_cancelled_in_the_queue_never_started(api: Api, dataset: Dataset) -> None:
    run = queued(api)
    stop_training(run=run)
    assert "never started" in refused(resume_run(api, run), 409, "not_resumable")["detail"]


def test_a_run_that_died_before_its_first_checkpoint_says_so(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_after(monkeypatch, 3)
    run = run_process(queued(api, **TEN_STEPS))
    detail = refused(resume_run(api, run), 409, "not_resumable")["detail"]
    assert "ended at step 3, before its first checkpoint" in detail


def test_checkpoints_that_were_deleted_by_hand_are_missed(api: Api, dead: TrainingRun) -> None:
    shutil.rmtree(checkpoints_dir(dead))
    assert "checkpoints are gone" in refused(resume_run(api, dead), 409, "not_resumable")["detail"]
    assert facts(api, dead)["can_resume"] is False


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_is_continued_once(api: Api, dead: TrainingRun, ended: bool) -> None:
    run = resumed(api, dead)
    if ended:
        work_queue()
    problem = refused(resume_run(api, dead), 409, "already_resumed")
    assert problem["continued_by"] == run.pk
    assert str(run.pk) in problem["hint"]
    assert facts(api, dead)["resume_reason"] == f"Run {run.pk} continues it."


def test_a_run_is_not_continued_beside_the_continuation_of_its_continuation(
    api: Api, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = resumed(api, dead)
    with monkeypatch.context() as patch:
        die_after(patch, 5)
        run_process(second)
    third = resumed(api, second)
    assert refused(resume_run(api, dead), 409, "already_resumed")["continued_by"] == third.pk


def test_a_failed_continuation_is_not_resumed_beside_the_one_that_took_its_place(api: Api, dead: TrainingRun) -> None:
    second = resumed(api, dead)
    stop_training(run=second)
    third = resumed(api, dead)
    assert refused(resume_run(api, second), 409, "already_resumed")["continued_by"] == third.pk
    assert facts(api, second)["can_resume"] is False
    stop_training(run=third)
    assert facts(api, second)["can_resume"] is True
    fourth = resumed(api, second)
    assert refused(resume_run(api, third), 409, "already_resumed")["continued_by"] == fourth.pk


def test_a_model_that_is_gone_is_named(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(TINY_MODEL_PATH, models_dir() / "mine")
    with monkeypatch.context() as patch:
        die_after(patch, 6)
        run = run_process(queued(api, **TEN_STEPS, model_config_data={"model_name": "mine"}))
    shutil.rmtree(models_dir() / "mine")
    detail = refused(resume_run(api, run), 409, "not_resumable")["detail"]
    assert "'mine' is not an allowed model" in detail


def test_a_machine_that_would_train_otherwise_is_refused(api: Api, dead: TrainingRun) -> None:
    dead.config["sft_config"] |= {"bf16": True, "optim": "adamw_8bit"}
    dead.save()
    detail = refused(resume_run(api, dead), 409, "not_resumable")["detail"]
    assert "sft_config.bf16: True -> False" in detail
    assert "sft_config.optim" in detail


def test_a_setting_that_the_run_did_not_know_yet_is_no_change(api: Api, dead: TrainingRun) -> None:
    del dead.config["sft_config"]["max_grad_norm"]
    dead.config["sft_config"]["dataloader_num_workers"] = 3
    dead.save()
    assert resume_run(api, dead).status_code == 202


def test_a_full_disk_is_noticed_before_anything_starts(
    api: Api, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "FREE_MB_TINY", 10**9)
    problem = refused(resume_run(api, dead), 503, "disk_full")
    assert problem["needed_mb"] == 10**9
    assert 0 < problem["free_mb"] < 10**9
    assert TrainingRun.objects.count() == 1


# What is found out only when it runs


def test_rows_that_changed_meanwhile_end_the_new_run_and_are_named(
    api: Api, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_row_four(**arguments: Any) -> Any:
        prepared = prepare_rows(**arguments)
        rows = [row for row in prepared.rows if row.index != 4]
        return type(prepared)(rows, prepared.warnings)

    monkeypatch.setattr("training_app.runner.prepare_rows", without_row_four)
    run = run_process(resumed(api, dead))
    assert run.status == "error"
    assert "missing now: 4" in (run.error or "")
    assert run.rows_sha256 == dead.rows_sha256
    monkeypatch.undo()
    assert facts(api, dead)["can_resume"] is True


def test_an_image_with_other_contents_is_another_row(api: Api, tmp_path: Path, dead: TrainingRun) -> None:
    rows = numbered_rows()
    rows[4] = (rows[4][0], rows[5][1], rows[4][2])
    other = load_dataset(tmp_path, rows, name="other.csv")
    run = resumed(api, dead)
    TrainingRun.objects.filter(pk=run.pk).update(dataset=other, mapping=other.mappings.get())
    run.refresh_from_db()
    assert "images of some have changed" in (run_process(run).error or "")


def test_a_checkpoint_that_goes_while_the_run_waits_is_missed(api: Api, dead: TrainingRun) -> None:
    run = resumed(api, dead)
    shutil.rmtree(checkpoints_dir(dead))
    error = run_process(run).error or ""
    assert f"The checkpoint of run {dead.pk} at step 4 is gone." in error


def test_an_incomplete_checkpoint_is_passed_over(api: Api, dead: TrainingRun) -> None:
    (checkpoints_dir(dead) / "checkpoint-6").mkdir()
    assert resumed(api, dead).resumed_step == 4


# The key


def test_the_same_key_answers_the_run_that_is_there(api: Api, dead: TrainingRun) -> None:
    first = resume_run(api, dead, **{"Idempotency-Key": "again"}).json()
    second = resume_run(api, dead, **{"Idempotency-Key": "again"}).json()
    assert second == first
    assert TrainingRun.objects.count() == 2


def test_the_key_of_a_start_is_not_the_key_of_a_continuation(api: Api, dead: TrainingRun, stopped: TrainingRun) -> None:
    resume_run(api, dead, **{"Idempotency-Key": "k"})
    refused(resume_run(api, stopped, **{"Idempotency-Key": "k"}), 409, "idempotency_key_reused")
    refused(api.post("/api/training/start", {}, **{"Idempotency-Key": "k"}), 409, "idempotency_key_reused")
