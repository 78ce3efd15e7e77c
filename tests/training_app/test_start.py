"""Starting a training run: what is answered at once, what is refused, and what one key may start."""

import json
from pathlib import Path
from typing import Any

import pytest
from pytest_django import DjangoCaptureOnCommitCallbacks

from datasets_app.models import Dataset, PreflightRun
from datasets_app.preflight_runner import execute_preflight
from ftproject.core.light_lane import run_light_jobs
from ftproject.core.models import Event
from tests.training_app.world import Api, SameProcessExecutor, load_dataset, numbered_rows, trained_run
from training_app import disk, services
from training_app.models import TrainingRun
from training_app.openapi_examples import START

URL = "/api/training/start"


def refused(answer: Any, status: int, code: str) -> dict[str, Any]:
    """The problem of a refusal, with something to do next."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == code
    assert problem["hint"]
    return problem


def test_an_empty_object_starts_a_run_with_the_defaults(api: Api, dataset: Dataset) -> None:
    answer = api.post(URL, {})
    assert answer.status_code == 200
    body = answer.json()
    run = TrainingRun.objects.get(pk=body.pop("run_id"))
    assert body == {
        "status": "started",
        "model_name": "tiny-qwen3-vl",
        "device": "cpu",
        "warnings": run.warnings,
    }
    assert run.status == "queued"
    assert run.config["sft_config"]["max_steps"] == 30
    assert run.requested_config == {}


@pytest.mark.parametrize("path", [URL, URL + "/"])
def test_an_empty_body_works_like_an_empty_object(api: Api, dataset: Dataset, path: str) -> None:
    assert api.post(path).json()["status"] == "started"


def test_what_the_device_cannot_do_is_said_at_once_and_kept(api: Api, dataset: Dataset) -> None:
    body = api.post(URL, {"sft_config": {"bf16": True, "optim": "adamw_8bit"}}).json()
    assert any("bf16" in warning for warning in body["warnings"])
    assert any("adamw_torch" in warning for warning in body["warnings"])
    run = TrainingRun.objects.get()
    assert run.requested_config == {"sft_config": {"bf16": True, "optim": "adamw_8bit"}}
    assert run.config["sft_config"]["bf16"] is False


def test_a_second_start_waits_in_the_queue_with_its_place(api: Api, dataset: Dataset) -> None:
    api.post(URL, {})
    second, third = api.post(URL, {}).json(), api.post(URL, {}).json()
    assert (second["status"], second["queue_position"]) == ("queued", 2)
    assert (third["status"], third["queue_position"]) == ("queued", 3)


def test_the_queue_is_told_once_the_row_is_committed(
    api: Api, dataset: Dataset, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    with django_capture_on_commit_callbacks() as callbacks:
        api.post(URL, {})
    assert len(callbacks) == 1


def test_the_waiting_status_is_published(api: Api, dataset: Dataset) -> None:
    run_id = api.post(URL, {}).json()["run_id"]
    event = Event.objects.get(type="training_status")
    assert (event.run_kind, event.run_id) == ("training", run_id)
    assert event.data["status"] == "queued"


def test_an_older_dataset_can_be_named(api: Api, dataset: Dataset, tmp_path: Path) -> None:
    load_dataset(tmp_path, numbered_rows(3), name="newer.csv")
    run_id = api.post(URL, {"dataset_id": dataset.pk}).json()["run_id"]
    assert TrainingRun.objects.get(pk=run_id).dataset_id == dataset.pk


def test_a_dry_run_answers_the_effective_configuration_and_starts_nothing(api: Api, dataset: Dataset) -> None:
    body = api.post(URL, {"dry_run": True, "sft_config": {"max_steps": 7}, "holdout_fraction": 0.25}).json()
    assert body["status"] == "dry_run"
    assert body["config"]["sft_config"]["max_steps"] == 7
    assert body["config"]["holdout_fraction"] == 0.25
    assert body["dataset_id"] == dataset.pk
    assert not TrainingRun.objects.exists()


def test_a_dry_run_without_a_light_lane_looks_at_the_first_rows(api: Api, dataset: Dataset) -> None:
    preflight = api.post(URL, {"dry_run": True}).json()["preflight"]
    assert preflight["complete"] is False
    assert preflight["rows"] == {"total": 12, "looked_at": 12, "skipped": 0}
    assert "/api/datasets/preflight" in preflight["hint"]
    assert not PreflightRun.objects.exists()


def test_a_dry_run_answers_the_figures_of_a_preflight_that_still_holds(api: Api, dataset: Dataset) -> None:
    body = {"sft_config": {"max_steps": 7}, "holdout_fraction": 0.25}
    api.post("/api/datasets/preflight", {**body, "wait_seconds": 0})
    assert run_light_jobs(SameProcessExecutor(execute_preflight)) == 1
    preflight = api.post(URL, {**body, "dry_run": True}).json()["preflight"]
    assert preflight["complete"] is True
    assert preflight["run_id"] == PreflightRun.objects.get().pk
    assert preflight["rows"] == {"total": 12, "usable": 12, "skipped": 0}
    assert preflight["tokens"]["counted"] == 12
    assert preflight["can_train"] is True


def test_a_dry_run_has_the_light_lane_make_the_figures(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lane(seconds: float) -> None:
        run_light_jobs(SameProcessExecutor(execute_preflight))

    run_light_jobs()  # the lane looked a moment ago
    monkeypatch.setattr("datasets_app.preflight_services.time.sleep", lane)
    assert api.post(URL, {"dry_run": True}).json()["preflight"]["complete"] is True


def test_a_dry_run_whose_preflight_fails_still_answers(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: PreflightRun, should_stop: Any) -> None:
        raise OSError("the disk is gone")

    run_light_jobs()
    lane = SameProcessExecutor(broken)
    monkeypatch.setattr("datasets_app.preflight_services.time.sleep", lambda seconds: run_light_jobs(lane))
    preflight = api.post(URL, {"dry_run": True}).json()["preflight"]
    assert preflight["complete"] is False


def test_the_speed_of_the_newest_completed_run_makes_the_estimate(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    TrainingRun.objects.filter(pk=run.pk).update(metrics={"tokens_per_second": 100.0, "peak_memory_mb": 700})
    api.post("/api/datasets/preflight", {"wait_seconds": 0})
    run_light_jobs(SameProcessExecutor(execute_preflight))
    report = PreflightRun.objects.get().report
    assert report is not None
    assert report["time"]["seconds"] == pytest.approx(report["time"]["tokens"] / 100, abs=0.2)
    assert f"training run {run.pk}" in report["time"]["how"]
    assert report["memory"]["measured"] == {"run_id": run.pk, "peak_mb": 700}


# Refusals


def test_the_documents_own_8b_start_is_refused_at_once_without_a_gpu(api: Api, dataset: Dataset) -> None:
    problem = refused(api.post(URL, START), 400, "model_needs_gpu")
    assert "tiny-qwen3-vl" in problem["hint"]
    assert problem["errors"][0]["field"] == "model_config_data.model_name"
    assert not TrainingRun.objects.exists()


def test_without_the_model_name_the_documents_start_works(api: Api, dataset: Dataset) -> None:
    body = json.loads(json.dumps(START))
    del body["model_config_data"]["model_name"]
    assert api.post(URL, body).json()["status"] == "started"


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"sft_config": {"max_step": 3}}, "sft_config.max_step", "unknown_field"),
        ({"sftconfig": {}}, "sftconfig", "unknown_field"),
        ({"sft_config": {"learning_rate": 0}}, "sft_config.learning_rate", "out_of_range"),
        ({"sft_config": {"max_steps": "30"}}, "sft_config.max_steps", "invalid_type"),
        ({"sft_config": []}, "sft_config", "invalid_type"),
        ({"lora_config": {"r": 0}}, "lora_config.r", "out_of_range"),
        ({"model_config_data": {"model_name": "evil/model"}}, "model_config_data.model_name", "model_not_allowed"),
        ({"model_config_data": {"model_name": "../../etc"}}, "model_config_data.model_name", "model_not_allowed"),
        ({"holdout_fraction": 1.0}, "holdout_fraction", "out_of_range"),
        ({"dataset_id": "1"}, "dataset_id", "invalid_type"),
        ({"dataset_id": 0}, "dataset_id", "out_of_range"),
        ({"dataset_id": True}, "dataset_id", "invalid_type"),
        ({"dry_run": "yes"}, "dry_run", "invalid_type"),
    ],
)
def test_a_wrong_field_is_named(api: Api, dataset: Dataset, body: dict[str, Any], field: str, code: str) -> None:
    answer = api.post(URL, body)
    assert answer.status_code == 400
    assert [(error["field"], error["code"]) for error in answer.json()["errors"]] == [(field, code)]
    assert not TrainingRun.objects.exists()


def test_all_wrong_fields_are_named_together(api: Api, dataset: Dataset) -> None:
    body = {"dataset_id": -1, "sft_config": {"max_steps": 0}, "lora_config": {"r": "x"}, "colour": 1}
    problem = api.post(URL, body).json()
    assert {error["field"] for error in problem["errors"]} == {
        "dataset_id",
        "sft_config.max_steps",
        "lora_config.r",
        "colour",
    }


def test_without_a_dataset_there_is_nothing_to_train_on(api: Api) -> None:
    problem = refused(api.post(URL, {}), 409, "dataset_not_loaded")
    assert "upload" in problem["hint"].lower()


def test_without_a_mapping_the_suggestion_comes_along(api: Api, tmp_path: Path) -> None:
    load_dataset(tmp_path, mapped=False)
    problem = refused(api.post(URL, {}), 409, "mapping_not_set")
    assert problem["suggestion"]["prompt_column"] == "prompt"


def test_an_unknown_dataset_is_404(api: Api, dataset: Dataset) -> None:
    refused(api.post(URL, {"dataset_id": 999}), 404, "dataset_not_found")


def test_a_dataset_without_a_usable_row_is_refused_with_the_rows(api: Api, tmp_path: Path) -> None:
    load_dataset(tmp_path, [("Which digit?", "", str(index)) for index in range(9)])
    problem = refused(api.post(URL, {}), 400, "no_usable_rows")
    assert [error["row"] for error in problem["errors"]] == [0, 1, 2, 3, 4]
    assert "'image'" in problem["errors"][0]["message"]


def test_a_full_disk_is_noticed_before_anything_starts(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "FREE_MB_TINY", 10**9)
    refused(api.post(URL, {}), 503, "disk_full")
    assert not TrainingRun.objects.exists()


def test_a_body_that_is_no_json_object_is_refused(api: Api, dataset: Dataset) -> None:
    assert api.post(URL, [1]).status_code == 400
    assert api.client.post(URL, data="{", content_type="application/json").json()["code"] == "malformed_json"
    assert api.client.post(URL, data="a=1", content_type="text/plain").status_code == 415


# Idempotency


def test_the_same_key_with_the_same_body_answers_the_same_run(api: Api, dataset: Dataset) -> None:
    headers = {"Idempotency-Key": "again"}
    first = api.post(URL, {"sft_config": {"max_steps": 3}}, **headers).json()
    assert api.post(URL, {"sft_config": {"max_steps": 3}}, **headers).json() == first
    assert TrainingRun.objects.count() == 1


def test_the_same_key_with_another_body_is_a_conflict(api: Api, dataset: Dataset) -> None:
    headers = {"Idempotency-Key": "again"}
    api.post(URL, {}, **headers)
    refused(api.post(URL, {"sft_config": {"max_steps": 3}}, **headers), 409, "idempotency_key_reused")
    assert TrainingRun.objects.count() == 1


def test_without_a_key_each_start_is_a_run_of_its_own(api: Api, dataset: Dataset) -> None:
    api.post(URL, {})
    api.post(URL, {})
    assert TrainingRun.objects.count() == 2


def test_a_key_too_long_to_store_is_refused(api: Api, dataset: Dataset) -> None:
    answer = api.post(URL, {}, **{"Idempotency-Key": "k" * 201})
    assert answer.json()["code"] == "invalid_header"


def test_the_loser_of_two_equal_requests_at_once_gets_the_winners_run(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = services.start_training(body={}, idempotency_key="race")
    find, looks = services.find_started, []

    def blind_at_first(key: str | None, fingerprint: str) -> services.StartedRun | None:
        looks.append(key)
        return find(key, fingerprint) if len(looks) > 1 else None

    monkeypatch.setattr(services, "find_started", blind_at_first)
    assert services.start_training(body={}, idempotency_key="race").run.pk == winner.run.pk


def test_the_schema_lists_every_field_with_its_default(api: Api) -> None:
    schema = api.get("/api/training/schema").json()
    assert schema["properties"]["sft_config"]["properties"]["learning_rate"]["default"] == 2e-4
    assert schema["properties"]["dry_run"]["default"] is False
    assert "tiny-qwen3-vl" in schema["properties"]["model_config_data"]["properties"]["model_name"]["description"]
