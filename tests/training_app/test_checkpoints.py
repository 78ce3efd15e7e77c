"""What becomes of checkpoints: freed on request, swept after a kill, kept where a continuation may want them."""

from pathlib import Path

import pytest

from datasets_app.models import Dataset
from ftproject.core.jobs import Job
from ftproject.core.storage import runs_dir
from ftproject.engine.backends.base import TrainingCallbacks, TrainingJob, TrainingResult
from ftproject.engine.backends.fake import FakeBackend
from tests.training_app.world import TEN_STEPS, Api, claimed, queued, run_process, train_with, trained_run
from training_app.checkpoints import checkpoints_dir, reserve_path, sweep_runs
from training_app.models import TrainingRun

URL = "/api/training/runs"


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# Freed on request


def test_the_checkpoints_of_a_dead_run_can_be_deleted_alone(api: Api, dead: TrainingRun) -> None:
    size = sum(path.stat().st_size for path in checkpoints_dir(dead).rglob("*") if path.is_file())
    answer = api.delete(f"{URL}/{dead.pk}/checkpoints")
    assert (answer.status_code, answer.json()) == (200, {"status": "deleted", "id": dead.pk, "freed_bytes": size})
    assert not checkpoints_dir(dead).exists()
    body = api.get(f"{URL}/{dead.pk}").json()
    assert (body["can_resume"], body["resume_reason"]) == (False, "Its checkpoints are gone.")
    assert api.delete(f"{URL}/{dead.pk}/checkpoints").json()["freed_bytes"] == 0


@pytest.mark.parametrize(
    ("steps", "reason"),
    [(30, "Its checkpoints are gone."), (9, "It ended at step 9, before its first checkpoint.")],
)
def test_a_run_of_epochs_tells_deleted_checkpoints_from_none_as_well(
    api: Api, dead: TrainingRun, steps: int, reason: str
) -> None:
    dead.config["sft_config"] |= {"use_epochs": True, "save_steps": None}  # ten steps apart, decided by its rows
    dead.current_step, dead.total_steps = steps, 100
    dead.save()
    api.delete(f"{URL}/{dead.pk}/checkpoints")
    assert api.get(f"{URL}/{dead.pk}").json()["resume_reason"] == reason


def test_those_of_a_waiting_or_active_run_stay(api: Api, dataset: Dataset) -> None:
    run = queued(api)
    assert api.delete(f"{URL}/{run.pk}/checkpoints").json()["code"] == "run_active"
    claimed(run)
    answer = api.delete(f"{URL}/{run.pk}/checkpoints")
    assert (answer.status_code, answer.json()["code"]) == (409, "run_active")


def test_those_that_a_waiting_continuation_needs_stay(api: Api, dead: TrainingRun) -> None:
    other = api.post(f"{URL}/{dead.pk}/resume").json()["run_id"]
    answer = api.delete(f"{URL}/{dead.pk}/checkpoints")
    assert (answer.status_code, answer.json()["code"]) == (409, "run_active")
    assert f"runs/{other}/stop" in answer.json()["hint"]
    assert leftovers(checkpoints_dir(dead)) == ["checkpoint-4"]


def test_those_that_a_starting_continuation_has_not_taken_over_yet_stay(api: Api, dead: TrainingRun) -> None:
    other = claimed(TrainingRun.objects.get(pk=api.post(f"{URL}/{dead.pk}/resume").json()["run_id"]))
    answer = api.delete(f"{URL}/{dead.pk}/checkpoints")
    assert (answer.status_code, answer.json()["code"]) == (409, "run_active")
    assert f"runs/{other.pk}/stop" in answer.json()["hint"]


def test_those_that_the_continuation_of_a_dead_continuation_needs_stay(api: Api, dead: TrainingRun) -> None:
    second = claimed(TrainingRun.objects.get(pk=api.post(f"{URL}/{dead.pk}/resume").json()["run_id"]))
    assert second.finish(Job.Status.ERROR, error="killed before its first checkpoint")
    third = api.post(f"{URL}/{second.pk}/resume").json()["run_id"]
    assert api.delete(f"{URL}/{dead.pk}/checkpoints").json()["code"] == "run_active"
    assert run_process(TrainingRun.objects.get(pk=third)).status == "completed"


def test_a_running_continuation_has_taken_its_checkpoint_over(
    api: Api, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeBackend.train
    other = TrainingRun.objects.get(pk=api.post(f"{URL}/{dead.pk}/resume").json()["run_id"])

    def train(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        result = plain(FakeBackend(), job, callbacks)
        assert leftovers(job.work_dir) == ["checkpoint-4", "checkpoint-8"]  # the first is the dead run's
        return result

    train_with(monkeypatch, train)
    run_process(other)
    assert other.status == "completed"


def test_an_unknown_run_has_none(api: Api) -> None:
    assert api.delete(f"{URL}/999/checkpoints").json()["code"] == "run_not_found"


# Swept at the start of the server


def test_a_complete_run_whose_process_died_while_tidying_up_is_tidied(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    (checkpoints_dir(run) / "checkpoint-9").mkdir(parents=True)
    reserve_path(run).write_bytes(b"x")
    assert sweep_runs() == 1
    assert not checkpoints_dir(run).exists()
    assert not reserve_path(run).exists()


def test_the_folder_of_a_deleted_run_is_tidied_too(api: Api) -> None:
    (runs_dir() / "training-77" / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    assert sweep_runs() == 1
    assert leftovers(runs_dir() / "training-77") == []


def test_of_a_dead_run_only_what_is_half_written_goes(api: Api, dead: TrainingRun) -> None:
    (checkpoints_dir(dead) / ".writing-9" / "checkpoint-9").mkdir(parents=True)
    reserve_path(dead).write_bytes(b"x")
    assert sweep_runs() == 0
    assert leftovers(checkpoints_dir(dead)) == ["checkpoint-4"]
    assert not reserve_path(dead).exists()


def test_a_run_that_a_command_trains_beside_is_left_alone(api: Api, dataset: Dataset) -> None:
    run = claimed(queued(api, **TEN_STEPS))
    TrainingRun.objects.update(status=Job.Status.TRAINING)
    (checkpoints_dir(run) / ".writing-4").mkdir(parents=True)
    reserve_path(run).write_bytes(b"x")
    assert sweep_runs() == 0
    assert leftovers(checkpoints_dir(run)) == [".writing-4"]
    assert reserve_path(run).exists()


def test_other_folders_are_none_of_its_business(api: Api) -> None:
    (runs_dir() / "evaluation-1" / "checkpoints").mkdir(parents=True)
    (runs_dir() / "training-notes").mkdir()
    assert sweep_runs() == 0
    assert (runs_dir() / "evaluation-1" / "checkpoints").is_dir()
