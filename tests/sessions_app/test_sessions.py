"""Sessions: saved configurations that are kept as they came, checked, copied, started and carried elsewhere."""

import json
from typing import Any

import pytest

from datasets_app.models import Dataset
from sessions_app.models import TrainingSession
from tests.training_app.world import Api, claimed, work_queue
from training_app.models import TrainingRun

URL = "/api/sessions/"
CREATE = {"name": "experiment-1", "description": "Testing lr=2e-4"}
SAVE = {
    "training_config": '{"max_steps": 60, "learning_rate": 1e-4}',
    "adapter_path": "/path/to/adapter",
    "status": "completed",
}
FIELDS = {
    "id",
    "name",
    "description",
    "status",
    "training_config",
    "training_config_effective",
    "adapter_path",
    "run_id",
    "created_at",
    "updated_at",
}


@pytest.fixture
def session(api: Api) -> dict[str, Any]:
    body: dict[str, Any] = api.post(URL, CREATE).json()
    return body


def test_creating_answers_201_with_the_session(api: Api) -> None:
    answer = api.post(URL, CREATE)
    assert answer.status_code == 201
    body = answer.json()
    assert set(body) == FIELDS
    assert (body["name"], body["description"], body["status"]) == ("experiment-1", "Testing lr=2e-4", "draft")
    assert body["training_config"] is None
    assert body["training_config_effective"] is None


def test_sessions_are_listed_newest_first(api: Api) -> None:
    ids = [api.post(URL, {"name": f"number {index}"}).json()["id"] for index in range(3)]
    assert [item["id"] for item in api.get("/api/sessions").json()["sessions"]] == ids[::-1]
    page = api.get(URL, page=2, page_size=2).json()
    assert ([item["id"] for item in page["sessions"]], page["total"]) == ([ids[0]], 3)


def test_the_documents_save_config_works_as_written(api: Api, session: dict[str, Any]) -> None:
    answer = api.post(f"{URL}{session['id']}/save-config", SAVE)
    assert answer.status_code == 200
    body = answer.json()
    assert body["training_config"] == SAVE["training_config"], "text stays text"
    assert body["adapter_path"] == "/path/to/adapter"
    assert body["status"] == "completed"
    assert body["training_config_effective"]["sft_config"]["max_steps"] == 60
    assert body["training_config_effective"]["sft_config"]["learning_rate"] == 1e-4
    assert body["training_config_effective"]["lora_config"]["r"] == 16


def test_an_object_is_given_back_as_an_object(api: Api, session: dict[str, Any]) -> None:
    config = {"sft_config": {"max_steps": 60}, "holdout_fraction": 0.2}
    body = api.post(f"{URL}{session['id']}/save-config/", {"training_config": config}).json()
    assert body["training_config"] == config
    assert api.get(f"{URL}{session['id']}").json()["training_config"] == config
    assert body["training_config_effective"]["holdout_fraction"] == 0.2


def test_saving_one_field_leaves_the_others(api: Api, session: dict[str, Any]) -> None:
    api.post(f"{URL}{session['id']}/save-config", SAVE)
    body = api.post(f"{URL}{session['id']}/save-config", {"status": "archived"}).json()
    assert (body["status"], body["training_config"]) == ("archived", SAVE["training_config"])
    assert api.post(f"{URL}{session['id']}/save-config", {"training_config": None}).json()["training_config"] is None


def test_patch_renames(api: Api, session: dict[str, Any]) -> None:
    body = api.patch(f"{URL}{session['id']}", {"name": "better name"}).json()
    assert (body["name"], body["description"]) == ("better name", CREATE["description"])
    assert body["updated_at"] >= session["updated_at"]


def test_a_clone_is_a_draft_without_a_claim_to_the_adapter(api: Api, session: dict[str, Any]) -> None:
    api.post(f"{URL}{session['id']}/save-config", SAVE)
    body = api.post(f"{URL}{session['id']}/clone").json()
    assert body["id"] != session["id"]
    assert body["name"] == "experiment-1 (copy)"
    assert (body["status"], body["adapter_path"], body["run_id"]) == ("draft", None, None)
    assert body["training_config"] == SAVE["training_config"]


def test_the_clone_of_the_longest_name_still_fits(api: Api) -> None:
    session = api.post(URL, {"name": "n" * 200}).json()
    name = api.post(f"{URL}{session['id']}/clone").json()["name"]
    assert len(name) == 200
    assert name.endswith(" (copy)")


def test_deleting_says_so(api: Api, session: dict[str, Any]) -> None:
    answer = api.delete(f"{URL}{session['id']}")
    assert (answer.status_code, answer.json()) == (200, {"status": "deleted", "id": session["id"]})
    assert api.get(f"{URL}{session['id']}").status_code == 404


def test_an_export_can_be_imported_elsewhere(api: Api, session: dict[str, Any]) -> None:
    api.post(f"{URL}{session['id']}/save-config", SAVE)
    exported = api.get(f"{URL}{session['id']}/export")
    assert "attachment" in exported["Content-Disposition"]
    answer = api.post("/api/sessions/import", exported.json())
    assert answer.status_code == 201
    body = answer.json()
    assert body["id"] != session["id"]
    assert (body["name"], body["training_config"]) == (CREATE["name"], SAVE["training_config"])
    assert (body["adapter_path"], body["status"]) == (None, "draft")


# Start


def test_starting_trains_with_the_sessions_settings(api: Api, dataset: Dataset, session: dict[str, Any]) -> None:
    api.post(f"{URL}{session['id']}/save-config", {"training_config": {"max_steps": 4, "r": 8}})
    answer = api.post(f"{URL}{session['id']}/start")
    assert answer.status_code == 202
    assert (answer.json()["status"], answer.json()["session_id"]) == ("started", session["id"])
    run = TrainingRun.objects.get(pk=answer.json()["run_id"])
    assert (run.config["sft_config"]["max_steps"], run.config["lora_config"]["r"]) == (4, 8)


def test_the_session_follows_its_run_to_the_adapter(api: Api, dataset: Dataset, session: dict[str, Any]) -> None:
    run_id = api.post(f"{URL}{session['id']}/start").json()["run_id"]
    claimed(TrainingRun.objects.get())
    assert api.get(f"{URL}{session['id']}").json()["status"] == "training"
    TrainingRun.objects.update(status="queued")
    work_queue()
    body = api.get(f"{URL}{session['id']}").json()
    assert (body["status"], body["run_id"]) == ("completed", run_id)
    assert body["adapter_path"] == str(TrainingRun.objects.get().adapter.path)


def test_the_session_of_a_failed_run_says_error(api: Api, dataset: Dataset, session: dict[str, Any]) -> None:
    api.post(f"{URL}{session['id']}/start")
    api.post("/api/training/stop")
    assert api.get(f"{URL}{session['id']}").json()["status"] == "error"


def test_a_deleted_run_leaves_the_session_a_draft(api: Api, dataset: Dataset, session: dict[str, Any]) -> None:
    run_id = api.post(f"{URL}{session['id']}/start").json()["run_id"]
    api.post("/api/training/stop")
    api.delete(f"/api/training/runs/{run_id}")
    body = api.get(f"{URL}{session['id']}").json()
    assert (body["status"], body["run_id"]) == ("draft", None)


def test_the_same_key_starts_a_session_once(api: Api, dataset: Dataset, session: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "k"}
    first = api.post(f"{URL}{session['id']}/start", **headers).json()
    assert api.post(f"{URL}{session['id']}/start", **headers).json()["run_id"] == first["run_id"]
    assert TrainingRun.objects.count() == 1


def test_a_start_that_is_refused_changes_nothing(api: Api, session: dict[str, Any]) -> None:
    answer = api.post(f"{URL}{session['id']}/start")
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_not_loaded")
    assert api.get(f"{URL}{session['id']}").json()["status"] == "draft"


# Refusals


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "   "}, "name"),
        ({"name": 5}, "name"),
        ({"name": None}, "name"),
        ({"name": "n" * 201}, "name"),
        ({"name": "n", "descripton": "x"}, "descripton"),
        ({"name": "n", "description": 5}, "description"),
        ({"name": "n", "status": ""}, "status"),
        ({"name": "n", "status": "s" * 33}, "status"),
        ({"name": "n", "adapter_path": 7}, "adapter_path"),
        ({"name": "n", "adapter_path": "p" * 4001}, "adapter_path"),
        ({"name": "n", "training_config": 7}, "training_config"),
        ({"name": "n", "training_config": [1]}, "training_config"),
        ({"name": "n\0"}, "name"),
    ],
)
def test_a_wrong_field_is_named(api: Api, body: dict[str, Any], field: str) -> None:
    answer = api.post(URL, body)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert not TrainingSession.objects.exists()


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"text"',
        '{"max_steps": NaN}',
        '{"max_steps": 1, "max_steps": 2}',
        "[" * 5000,
        '{"max_steps": ' + "9" * 5000 + "}",
        '{"model_name": "\\ud800"}',
        '{"sft_config": {"max_steps": "60"}}',
        '{"max_step": 60}',
        {"max_step": 60},
        {"sft_config": 5},
        {"sft_config": {"learning_rate": -1}},
        {"sft_config": {"max_seq_length": 64}, "model_config_data": {"max_seq_length": 128}},
    ],
)
def test_a_configuration_that_training_would_refuse_is_not_saved(
    api: Api, session: dict[str, Any], config: Any
) -> None:
    answer = api.post(f"{URL}{session['id']}/save-config", {"training_config": config, "status": "ready"})
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"
    unchanged = api.get(f"{URL}{session['id']}").json()
    assert (unchanged["training_config"], unchanged["status"]) == (None, "draft")


@pytest.mark.parametrize("as_text", [True, False])
def test_a_configuration_over_64_kb_is_413(api: Api, session: dict[str, Any], as_text: bool) -> None:
    config = {"model_config_data": {"model_name": "m" * 65_536}}
    value = json.dumps(config) if as_text else config
    answer = api.post(f"{URL}{session['id']}/save-config", {"training_config": value})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
        ({"adapter_path": "/x"}, "adapter_path"),
        ({"name": ""}, "name"),
    ],
)
def test_a_document_that_is_no_export_is_refused(
    api: Api, session: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    document = api.get(f"{URL}{session['id']}/export").json()
    answer = api.post("/api/sessions/import/", document | change)
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize("method", ["get", "patch", "delete"])
@pytest.mark.parametrize("number", ["0", "77", "9" * 25])
def test_an_unknown_session_is_404(api: Api, method: str, number: str) -> None:
    path = f"{URL}{number}"
    answer = api.patch(path, {}) if method == "patch" else getattr(api, method)(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")


@pytest.mark.parametrize("tail", ["save-config", "clone", "start"])
def test_an_unknown_session_cannot_be_acted_on(api: Api, tail: str) -> None:
    assert api.post(f"{URL}77/{tail}", {}).json()["code"] == "session_not_found"
    assert api.get(f"{URL}77/export").json()["code"] == "session_not_found"


def test_a_configuration_that_a_later_version_no_longer_knows_is_still_listed(
    api: Api, session: dict[str, Any]
) -> None:
    TrainingSession.objects.update(training_config='{"bygone": 1}')
    body = api.get(URL).json()["sessions"][0]
    assert (body["training_config"], body["training_config_effective"]) == ('{"bygone": 1}', None)
