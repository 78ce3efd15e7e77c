"""POST /api/evaluation/run: what it refuses, and what it queues."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import ColumnMapping, Dataset
from evaluation_app.models import EvaluationRun
from ftproject.engine.gpu import device_facts
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
RUN = "/api/evaluation/run"
DOCUMENT_BODY = {
    "adapter_path": None,
    "sample_limit": 100,
    "classification_mode": False,
    "generation_params": {"max_new_tokens": 256, "temperature": 0.1, "do_sample": False},
}


def refused(api: APIClient, body: Any, status: int, code: str) -> dict[str, Any]:
    response = api.post(RUN, body, format="json")
    assert (response.status_code, response.json()["code"]) == (status, code), response.content
    assert response["Content-Type"] == "application/problem+json"
    assert EvaluationRun.objects.count() == 0
    problem: dict[str, Any] = response.json()
    return problem


def test_without_a_dataset_it_is_a_conflict(api: APIClient) -> None:
    assert refused(api, {}, 409, "dataset_not_loaded")["hint"]


def test_without_a_mapping_it_is_a_conflict(api: APIClient, dataset: Dataset) -> None:
    ColumnMapping.objects.all().delete()
    assert refused(api, {}, 409, "mapping_not_set")["hint"]


def test_an_unknown_dataset_is_not_found(api: APIClient, dataset: Dataset) -> None:
    refused(api, {"dataset_id": 999}, 404, "dataset_not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"sample_limit": 0}, "sample_limit"),
        ({"sample_limit": -1}, "sample_limit"),
        ({"sample_limit": 10**12}, "sample_limit"),
        ({"sample_limit": "10"}, "sample_limit"),
        ({"sample_limit": 1.5}, "sample_limit"),
        ({"sample_limit": True}, "sample_limit"),
        ({"adapter_path": True}, "adapter_path"),
        ({"adapter_path": ["a"]}, "adapter_path"),
        ({"adapter_path": "a" * 5000}, "adapter_path"),
        ({"split_adapter": {}}, "split_adapter"),
        ({"rows": "some"}, "rows"),
        ({"rows": None}, "rows"),
        ({"classification_mode": "yes"}, "classification_mode"),
        ({"classification_mode": 1}, "classification_mode"),
        ({"positive_label": 1}, "positive_label"),
        ({"dataset_id": 0}, "dataset_id"),
        ({"model_name": 7}, "model_name"),
        ({"generation_params": []}, "generation_params"),
        ({"generation_params": {"max_new_tokens": 0}}, "generation_params.max_new_tokens"),
        ({"generation_params": {"max_new_tokens": 8193}}, "generation_params.max_new_tokens"),
        ({"generation_params": {"temperature": -1}}, "generation_params.temperature"),
        ({"generation_params": {"do_sample": "no"}}, "generation_params.do_sample"),
        ({"generation_params": {"temprature": 1}}, "generation_params.temprature"),
    ],
)
def test_a_wrong_field_is_named(api: APIClient, dataset: Dataset, body: dict[str, Any], field: str) -> None:
    response = api.post(RUN, body, format="json")
    assert response.status_code == 400, response.content
    assert field in [error.get("field") for error in response.json()["errors"]]
    assert EvaluationRun.objects.count() == 0


def test_an_unknown_field_is_named_with_the_nearest_known_one(api: APIClient, dataset: Dataset) -> None:
    problem = refused(api, {"adapter": "x"}, 400, "invalid_input")
    assert "adapter_path" in problem["detail"]


@pytest.mark.parametrize("reference", ["nothing", "", "/etc/passwd", "../adapter_1", 999, 2**70])
def test_an_unknown_adapter_is_not_found(api: APIClient, adapter: Adapter, reference: Any) -> None:
    refused(api, {"adapter_path": reference}, 404, "adapter_not_found")
    refused(api, {"split_adapter": reference}, 404, "adapter_not_found")


def test_an_adapter_that_changes_nothing_is_not_evaluated_as_fine_tuned(
    api: APIClient, dataset: Dataset, make_adapter: Callable[..., Adapter]
) -> None:
    make_adapter(dataset, effective=False)
    refused(api, {"adapter_path": "adapter_1"}, 409, "adapter_not_effective")


def test_an_adapter_that_changes_nothing_still_names_a_split(
    api: APIClient, dataset: Dataset, make_adapter: Callable[..., Adapter]
) -> None:
    make_adapter(dataset, effective=False)
    assert api.post(RUN, {"split_adapter": "adapter_1", "rows": "heldout"}, format="json").status_code == 200


@pytest.mark.parametrize("rows", ["heldout", "trained"])
def test_a_part_of_no_split_is_refused(api: APIClient, dataset: Dataset, rows: str) -> None:
    assert "split_adapter" in refused(api, {"rows": rows}, 400, "no_split")["hint"]


def test_a_split_of_another_dataset_is_no_split(
    api: APIClient, adapter: Adapter, make_dataset: Callable[..., Dataset]
) -> None:
    make_dataset([("other", "rows", "here")], name="other.csv")
    refused(api, {"adapter_path": "adapter_1", "rows": "heldout"}, 400, "no_split")


def test_a_split_that_held_nothing_out_is_refused(
    api: APIClient, dataset: Dataset, make_adapter: Callable[..., Adapter]
) -> None:
    make_adapter(dataset, heldout=[])
    problem = refused(api, {"adapter_path": "adapter_1", "rows": "heldout"}, 400, "no_heldout_rows")
    assert "holdout_fraction" in problem["hint"]


def test_an_adapter_is_not_judged_on_the_split_of_another(
    api: APIClient, dataset: Dataset, make_adapter: Callable[..., Adapter]
) -> None:
    make_adapter(dataset)
    make_adapter(dataset, name="adapter_2", trained=[0])
    refused(api, {"adapter_path": "adapter_1", "split_adapter": "adapter_2"}, 400, "split_adapter_conflict")


def test_an_adapter_is_not_put_on_another_base_model(api: APIClient, adapter: Adapter) -> None:
    body = {"adapter_path": "adapter_1", "model_name": "Qwen/Qwen3-VL-4B-Instruct"}
    refused(api, body, 400, "adapter_base_mismatch")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("gpt2", "model_not_allowed"),
        ("m" * 300, "model_not_allowed"),
        ("unsloth/Qwen3-VL-8B-Instruct", "model_needs_gpu"),
    ],
)
def test_a_base_model_that_cannot_run_here_is_refused_at_once(
    api: APIClient, dataset: Dataset, name: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    problem = refused(api, {"model_name": name}, 400, code)
    assert problem["errors"][0]["field"] == "model_name"
    assert problem["hint"]


def test_a_positive_label_needs_classification_mode(api: APIClient, dataset: Dataset) -> None:
    refused(api, {"positive_label": "yes"}, 400, "positive_label_unused")


def test_a_positive_label_that_no_row_has_is_refused_before_the_work(api: APIClient, dataset: Dataset) -> None:
    body = {"positive_label": "maybe", "classification_mode": True}
    assert "number 1" in refused(api, body, 400, "unknown_positive_label")["hint"]


@pytest.mark.parametrize("key", ["k" * 201, "a\x01b"])
def test_an_idempotency_key_that_cannot_be_one_is_refused(api: APIClient, dataset: Dataset, key: str) -> None:
    response = api.post(RUN, {}, format="json", HTTP_IDEMPOTENCY_KEY=key)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_header")


def test_the_documents_own_body_starts_a_base_run(api: APIClient, dataset: Dataset) -> None:
    response = api.post(RUN, DOCUMENT_BODY, format="json")
    run = EvaluationRun.objects.get()
    assert response.status_code == 200
    assert response.json() == {
        "status": "started",
        "model_type": "base",
        "run_id": run.pk,
        "model_name": run.model_name,
    }
    assert run.generation_params["max_new_tokens"] == 256
    assert run.total == 10


def test_an_empty_body_evaluates_the_base_greedily_on_all_rows(api: APIClient, dataset: Dataset) -> None:
    api.post(RUN, {}, format="json")
    run = EvaluationRun.objects.get()
    assert (run.model_type, run.rows, run.sample_limit, run.eval_mode) == ("base", "all", None, "token")
    assert run.generation_params["do_sample"] is False


@pytest.mark.parametrize("reference", ["name", "path", "id"])
def test_an_adapter_is_named_by_name_path_or_id(api: APIClient, adapter: Adapter, reference: str) -> None:
    value = {"name": adapter.name, "path": str(adapter.path), "id": adapter.pk}[reference]
    response = api.post(RUN, {"adapter_path": value}, format="json")
    assert response.json()["model_type"] == "finetuned"
    run = EvaluationRun.objects.get()
    assert run.adapter == run.split_adapter == adapter


def test_an_adapters_run_sees_the_pixels_and_length_of_its_training(api: APIClient, adapter: Adapter) -> None:
    api.post(RUN, {"adapter_path": adapter.name}, format="json")
    settings = EvaluationRun.objects.get().model_settings
    assert (settings["max_pixels"], settings["max_seq_length"]) == (4096, 512)


def test_a_base_run_on_an_adapters_split_takes_that_adapters_base_and_pixels(
    api: APIClient, adapter: Adapter, settings: Any
) -> None:
    settings.DEFAULT_MODEL_NAME = "some-default"
    api.post(RUN, {"split_adapter": adapter.name, "rows": "heldout"}, format="json")
    run = EvaluationRun.objects.get()
    assert (run.adapter, run.split_adapter, run.model_type) == (None, adapter, "base")
    assert (run.model_name, run.model_settings["max_pixels"], run.total) == ("tiny-qwen3-vl", 4096, 3)


def test_a_second_run_waits_in_the_queue(api: APIClient, dataset: Dataset) -> None:
    first = api.post(RUN, {}, format="json").json()
    second = api.post(RUN, {"sample_limit": 2}, format="json").json()
    assert (first["status"], "queue_position" in first) == ("started", False)
    assert (second["status"], second["queue_position"]) == ("queued", 2)


def test_the_same_key_and_body_start_one_run(api: APIClient, dataset: Dataset) -> None:
    answers = [api.post(RUN, {}, format="json", HTTP_IDEMPOTENCY_KEY="once").json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert EvaluationRun.objects.count() == 1


def test_the_same_key_answers_even_when_the_request_would_be_refused_by_now(
    api: APIClient, dataset: Dataset, make_adapter: Callable[..., Adapter]
) -> None:
    adapter = make_adapter(dataset)
    body = {"adapter_path": adapter.name}
    first = api.post(RUN, body, format="json", HTTP_IDEMPOTENCY_KEY="once").json()
    Adapter.objects.update(effective=False)
    assert api.post(RUN, body, format="json", HTTP_IDEMPOTENCY_KEY="once").json() == first


def test_two_requests_with_one_key_at_once_start_one_run(
    api: APIClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes in while the first asks for the device: after its look for the key, before its row."""
    answers: list[Any] = []

    def slow_driver() -> Any:
        if not answers:
            answers.append(None)
            answers[0] = api.post(RUN, {}, format="json", HTTP_IDEMPOTENCY_KEY="once").json()
        return device_facts()

    monkeypatch.setattr("training_app.configuration.device_facts", slow_driver)
    assert api.post(RUN, {}, format="json", HTTP_IDEMPOTENCY_KEY="once").json() == answers[0]
    assert EvaluationRun.objects.count() == 1


def test_the_same_key_with_another_body_is_a_conflict(api: APIClient, dataset: Dataset) -> None:
    api.post(RUN, {}, format="json", HTTP_IDEMPOTENCY_KEY="once")
    response = api.post(RUN, {"sample_limit": 1}, format="json", HTTP_IDEMPOTENCY_KEY="once")
    assert (response.status_code, response.json()["code"]) == (409, "idempotency_key_reused")
    assert EvaluationRun.objects.count() == 1


def test_both_slash_forms_start_a_run(api: APIClient, dataset: Dataset) -> None:
    assert api.post(f"{RUN}/", {}, format="json").status_code == 200
