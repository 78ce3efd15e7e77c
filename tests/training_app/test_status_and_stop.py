"""What the status shows at each moment, and what stop does to a running, a waiting and no run."""

import math
from typing import Any

import pytest

from datasets_app.models import Dataset
from ftproject.core.jobs import Job
from ftproject.core.models import Event
from ftproject.engine.backends.base import TrainingProgress
from tests.training_app.world import Api, claimed, trained_run, work_queue
from training_app.models import TrainingRun
from training_app.progress import RunReporter

STATUS = "/api/training/status"
STOP = "/api/training/stop"
FIELDS = {
    "status",
    "run_id",
    "current_step",
    "total_steps",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "eval_loss",
    "eta_seconds",
    "elapsed_seconds",
    "message",
    "error",
    "adapter_path",
    "stopped_early",
    "queue_position",
    "eval_exact_match",
    "eval_token_f1",
    "best_step",
    "resumed_from",
    "resumed_step",
    "can_resume",
    "resume_reason",
}


def test_before_any_run_the_status_is_idle_and_all_else_null(api: Api) -> None:
    body = api.get(STATUS).json()
    assert set(body) == FIELDS
    assert body.pop("status") == "idle"
    assert set(body.values()) == {None}


def test_right_after_a_start_the_status_is_the_new_runs(api: Api, dataset: Dataset) -> None:
    trained_run(api)
    run_id = api.post("/api/training/start", {}).json()["run_id"]
    body = api.get(STATUS).json()
    assert set(body) == FIELDS
    assert (body["status"], body["run_id"], body["queue_position"]) == ("queued", run_id, 1)
    assert body["adapter_path"] is None


def test_a_completed_run_shows_its_last_step_and_its_adapter(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 4})
    body = api.get(STATUS + "/").json()
    assert (body["status"], body["current_step"], body["total_steps"]) == ("completed", 4, 4)
    assert body["loss"] == run.logged.get(step=4).loss
    assert body["adapter_path"] == str(run.adapter.path)
    assert body["stopped_early"] is False
    assert body["elapsed_seconds"] >= 0


def test_the_running_run_is_shown_even_when_a_newer_one_waits(api: Api, dataset: Dataset) -> None:
    api.post("/api/training/start", {})
    running = claimed(TrainingRun.objects.get())
    api.post("/api/training/start", {})
    body = api.get(STATUS).json()
    assert (body["run_id"], body["status"]) == (running.pk, "loading_model")


def test_no_float_of_the_status_is_ever_nan(api: Api, dataset: Dataset) -> None:
    api.post("/api/training/start", {})
    run = claimed(TrainingRun.objects.get())
    reporter = RunReporter(run, lambda: False)
    reporter.on_progress(TrainingProgress(1, 9, grad_norm=math.inf, loss=1.0, eta_seconds=math.nan))
    reporter.flush()
    body = api.get(STATUS).json()
    assert (body["grad_norm"], body["eta_seconds"], body["loss"]) == (None, None, 1.0)


def test_after_the_last_run_is_deleted_the_status_is_idle_again(api: Api, dataset: Dataset) -> None:
    api.post("/api/training/start", {})
    run_id = api.post(STOP).json()["run_id"]
    assert api.delete(f"/api/training/runs/{run_id}").status_code == 200
    assert api.get(STATUS).json()["status"] == "idle"


# Stop


def test_stop_when_nothing_runs_is_a_conflict(api: Api) -> None:
    answer = api.post(STOP)
    assert answer.status_code == 409
    assert answer.json()["code"] == "no_active_run"


def test_stop_after_the_end_is_a_conflict_too(api: Api, dataset: Dataset) -> None:
    trained_run(api)
    assert api.post(STOP).json()["code"] == "no_active_run"


def test_stop_asks_the_running_run_and_leaves_the_waiting_one_alone(api: Api, dataset: Dataset) -> None:
    api.post("/api/training/start", {})
    running = claimed(TrainingRun.objects.get())
    waiting = api.post("/api/training/start", {}).json()["run_id"]
    body = api.post(STOP).json()
    assert (body["status"], body["run_id"]) == ("stopping", running.pk)
    assert api.get(STATUS).json()["status"] == "stopping"
    assert TrainingRun.objects.get(pk=waiting).status == "queued"
    assert Event.objects.filter(type="training_status", data__status="stopping", run_id=running.pk).count() == 1


def test_a_second_stop_does_not_renew_the_time_that_the_first_gave(api: Api, dataset: Dataset) -> None:
    api.post("/api/training/start", {})
    claimed(TrainingRun.objects.get())
    api.post(STOP)
    asked = TrainingRun.objects.get().stop_requested_at
    assert api.post(STOP).json()["status"] == "stopping"
    assert TrainingRun.objects.get().stop_requested_at == asked


def test_with_none_active_stop_cancels_the_oldest_waiting_run_and_says_so(api: Api, dataset: Dataset) -> None:
    first = api.post("/api/training/start", {}).json()["run_id"]
    second = api.post("/api/training/start", {}).json()["run_id"]
    body = api.post(STOP).json()
    assert (body["status"], body["run_id"]) == ("cancelled", first)
    run = TrainingRun.objects.get(pk=first)
    assert (run.status, run.error) == ("error", "Cancelled before it started.")
    work_queue()
    assert TrainingRun.objects.get(pk=first).started_at is None
    assert TrainingRun.objects.get(pk=second).status == "completed"


def test_a_waiting_run_can_be_cancelled_by_its_number(api: Api, dataset: Dataset) -> None:
    api.post("/api/training/start", {})
    second = api.post("/api/training/start", {}).json()["run_id"]
    answer = api.post(f"/api/training/runs/{second}/stop")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")


def test_a_run_that_has_ended_cannot_be_stopped(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    assert api.post(f"/api/training/runs/{run.pk}/stop").json()["code"] == "no_active_run"


def test_an_active_evaluation_is_no_training_to_stop(api: Api, dataset: Dataset) -> None:
    from tests.core.jobs import make_evaluation

    make_evaluation(status=Job.Status.EVALUATING, claim="c")
    assert api.post(STOP).json()["code"] == "no_active_run"


@pytest.mark.parametrize(("method", "path"), [("post", STATUS), ("get", STOP), ("get", "/api/training/start")])
def test_the_wrong_method_is_405_as_a_problem(api: Api, method: str, path: str) -> None:
    answer: Any = getattr(api, method)(path)
    assert answer.status_code == 405
    assert answer["Content-Type"] == "application/problem+json"
