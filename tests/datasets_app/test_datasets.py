"""Info, columns, previews, and the list of all datasets with activate and delete."""

from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from datasets_app.selectors import (
    get_dataset,
    get_mapping,
    iter_rows,
    read_rows,
    require_ready_dataset,
    row_mapping,
)
from datasets_app.services import dataset_activate, dataset_delete, mapping_set
from evaluation_app.models import EvaluationRun
from ftproject.core.errors import ConflictError, NotFoundError
from tests.datasets_app.conftest import Upload
from training_app.models import TrainingRun

ROWS = b"prompt,response,image\n" + b"".join(b"p%d,r%d,\n" % (number, number) for number in range(12))


@pytest.fixture
def dataset(upload: Upload) -> Dataset:
    upload(ROWS, "twelve.csv")
    return Dataset.objects.get()


def preview(client: APIClient, **body: Any) -> Any:
    return client.post("/api/datasets/preview", body, format="json")


@pytest.mark.django_db
def test_before_any_upload_info_is_200_and_empty(client: APIClient) -> None:
    answer = client.get("/api/datasets/info")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("loaded") is False
    assert {"filename", "num_rows", "num_columns", "columns"} <= body.keys()
    assert set(body.values()) == {None}


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["columns", "mapping", "preview/conversations"])
def test_before_any_upload_the_others_are_404(client: APIClient, path: str) -> None:
    answer = client.get(f"/api/datasets/{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "dataset_not_loaded")
    assert "upload" in answer.json()["hint"]


@pytest.mark.django_db
def test_before_any_upload_preview_is_404(client: APIClient) -> None:
    assert preview(client).json()["code"] == "dataset_not_loaded"


def test_info_and_columns_speak_of_the_current_dataset(client: APIClient, dataset: Dataset) -> None:
    info = client.get("/api/datasets/info").json()
    assert (info["loaded"], info["filename"], info["num_rows"], info["num_columns"]) == (True, "twelve.csv", 12, 3)
    assert client.get("/api/datasets/columns/").json() == {
        "columns": ["prompt", "response", "image"],
        "dataset_id": dataset.pk,
    }


def test_the_documents_preview_gives_a_page_and_the_totals(client: APIClient, dataset: Dataset) -> None:
    body = preview(client, page=3, page_size=5).json()
    assert [row["prompt"] for row in body["rows"]] == ["p10", "p11"]
    totals = {key: body[key] for key in ("page", "page_size", "total_rows", "total_pages")}
    assert totals == {"page": 3, "page_size": 5, "total_rows": 12, "total_pages": 3}


def test_a_page_past_the_end_is_empty(client: APIClient, dataset: Dataset) -> None:
    answer = preview(client, page=10_000_000, page_size=500)
    assert (answer.status_code, answer.json()["rows"]) == (200, [])


@pytest.mark.parametrize(
    "body",
    [{"page": 0}, {"page": -1}, {"page": 10_000_001}, {"page": 1.0}, {"page": "x"}, {"page": None}, {"page": True},
     {"page_size": 0}, {"page_size": 501}, {"page_size": 2**70}, {"pages": 1}],
)  # fmt: skip
def test_a_page_that_cannot_be_is_400(client: APIClient, dataset: Dataset, body: dict[str, Any]) -> None:
    assert preview(client, **body).status_code == 400


def test_conversations_are_as_the_model_sees_them(client: APIClient, dataset: Dataset) -> None:
    mapping_set(dataset=dataset, prompt_column="prompt", response_column="response", mandatory_columns=["image"])
    body = client.get("/api/datasets/preview/conversations?start=11&count=3").json()
    assert {key: body[key] for key in ("start", "count", "total")} == {"start": 11, "count": 1, "total": 12}
    [conversation] = body["conversations"]
    assert conversation["index"] == 11
    assert conversation["skipped"] is True
    assert "image" in conversation["skipped_reason"]
    assert conversation["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "p11"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "r11"}]},
    ]


def test_conversations_without_a_mapping_are_404(client: APIClient, dataset: Dataset) -> None:
    answer = client.get("/api/datasets/preview/conversations?start=0&count=3")
    assert (answer.status_code, answer.json()["code"]) == (404, "mapping_not_set")


@pytest.mark.parametrize("query", ["start=-1", "count=0", "count=501", "start=x", "offset=1", f"start={2**70}"])
def test_a_range_that_cannot_be_is_400(client: APIClient, dataset: Dataset, query: str) -> None:
    assert client.get(f"/api/datasets/preview/conversations?{query}").status_code == 400


def test_all_uploads_are_kept_newest_first(client: APIClient, dataset: Dataset, upload: Upload) -> None:
    upload(b"a,b\n1,2\n", "newer.csv")
    listed = client.get("/api/datasets/").json()["datasets"]
    assert [(entry["filename"], entry["is_current"]) for entry in listed] == [
        ("newer.csv", True),
        ("twelve.csv", False),
    ]
    assert client.get("/api/datasets").status_code == 200


def test_another_dataset_is_read_by_its_id(client: APIClient, dataset: Dataset, upload: Upload) -> None:
    upload(b"a,b\n1,2\n", "newer.csv")
    old = dataset.pk
    assert client.get(f"/api/datasets/info?dataset_id={old}").json()["filename"] == "twelve.csv"
    assert client.get(f"/api/datasets/columns?dataset_id={old}").json()["columns"] == dataset.columns
    assert preview(client, dataset_id=old).json()["total_rows"] == 12
    assert client.get(f"/api/datasets/{old}").json()["sample_rows"][0]["prompt"] == "p0"


def test_activate_makes_an_older_dataset_current(client: APIClient, dataset: Dataset, upload: Upload) -> None:
    upload(b"a,b\n1,2\n", "newer.csv")
    answer = client.post(f"/api/datasets/{dataset.pk}/activate")
    assert (answer.status_code, answer.json()["is_current"]) == (200, True)
    assert client.get("/api/datasets/info").json()["filename"] == "twelve.csv"
    assert Dataset.objects.filter(is_current=True).count() == 1


def test_activating_twice_changes_nothing(dataset: Dataset) -> None:
    assert dataset_activate(dataset=dataset).is_current
    assert dataset_activate(dataset=dataset).is_current


def test_a_deleted_dataset_is_gone_with_its_file(client: APIClient, dataset: Dataset) -> None:
    path = dataset.table_path
    answer = client.delete(f"/api/datasets/{dataset.pk}")
    assert (answer.status_code, answer.json()) == (200, {"status": "deleted", "id": dataset.pk})
    assert not path.exists()
    assert client.get("/api/datasets/info").json()["loaded"] is False


def test_a_dataset_that_a_run_used_cannot_be_deleted(client: APIClient, dataset: Dataset) -> None:
    mapping = mapping_set(dataset=dataset, prompt_column="prompt", response_column="response")
    run = TrainingRun.objects.create(dataset=dataset, mapping=mapping, model_name="tiny")
    answer = client.delete(f"/api/datasets/{dataset.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_in_use")
    assert f"training run {run.pk}" in answer.json()["detail"]
    assert dataset.table_path.exists()
    assert Dataset.objects.filter(pk=dataset.pk, is_current=True).exists()


@pytest.mark.parametrize("path", ["/api/datasets/999", "/api/datasets/99999999999999999999999"])
@pytest.mark.parametrize("method", ["get", "delete"])
def test_an_unknown_id_is_404(client: APIClient, dataset: Dataset, method: str, path: str) -> None:
    answer = getattr(client, method)(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "dataset_not_found")


def test_activating_an_unknown_dataset_is_404(client: APIClient, dataset: Dataset) -> None:
    assert client.post("/api/datasets/999/activate").json()["code"] == "dataset_not_found"


def test_activating_a_dataset_that_was_just_deleted_is_409_and_keeps_the_current_one(
    dataset: Dataset, upload: Upload
) -> None:
    upload(b"a,b\n1,2\n", "newer.csv")
    stale = Dataset.objects.get(pk=dataset.pk)
    dataset_delete(dataset=dataset)
    with pytest.raises(ConflictError):
        dataset_activate(dataset=stale)
    assert Dataset.objects.filter(is_current=True).count() == 1


def test_rows_that_are_gone_from_the_disk_are_409_with_a_hint(client: APIClient, dataset: Dataset) -> None:
    dataset.table_path.unlink()
    answer = preview(client)
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_file_missing")
    assert "Upload" in answer.json()["hint"]
    with pytest.raises(ConflictError):
        list(iter_rows(dataset=dataset))


def test_a_preview_costs_one_query(client: APIClient, dataset: Dataset) -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        preview(client, page=1, page_size=5)
    assert len(queries) == 1


def test_iter_rows_numbers_the_rows_and_reads_only_what_is_asked(dataset: Dataset) -> None:
    found = list(iter_rows(dataset=dataset, limit=2, columns=["response"]))
    assert found == [(0, {"response": "r0"}), (1, {"response": "r1"})]
    assert len(list(iter_rows(dataset=dataset))) == 12
    assert list(iter_rows(dataset=dataset, limit=0)) == []
    assert len(list(iter_rows(dataset=dataset, limit=10**12))) == 12


def test_read_rows_takes_any_range(dataset: Dataset) -> None:
    assert [row["prompt"] for row in read_rows(dataset=dataset, start=5, count=2)] == ["p5", "p6"]
    assert read_rows(dataset=dataset, start=12, count=1) == []


@pytest.mark.django_db
def test_a_run_without_a_dataset_is_409() -> None:
    with pytest.raises(ConflictError) as caught:
        require_ready_dataset(dataset_id=None)
    assert caught.value.code == "dataset_not_loaded"


def test_a_run_without_a_mapping_is_409_with_a_suggestion(dataset: Dataset) -> None:
    with pytest.raises(ConflictError) as caught:
        require_ready_dataset(dataset_id=None)
    assert caught.value.code == "mapping_not_set"
    assert caught.value.extra["suggestion"]["prompt_column"] == "prompt"


def test_a_run_on_an_unknown_dataset_is_404(dataset: Dataset) -> None:
    with pytest.raises(NotFoundError) as caught:
        require_ready_dataset(dataset_id=999)
    assert caught.value.code == "dataset_not_found"


def test_a_ready_dataset_comes_with_its_newest_mapping(dataset: Dataset) -> None:
    mapping_set(dataset=dataset, prompt_column="prompt", response_column="image")
    newest = mapping_set(dataset=dataset, prompt_column="prompt", response_column="response", image_separator="|")
    assert require_ready_dataset(dataset_id=None) == (dataset, newest)
    assert get_mapping(dataset=get_dataset(dataset_id=dataset.pk)) == newest
    assert row_mapping(newest).image_separator == "|"


def test_a_dataset_that_an_evaluation_used_cannot_be_deleted(client: APIClient, dataset: Dataset) -> None:
    mapping = mapping_set(dataset=dataset, prompt_column="prompt", response_column="response")
    run = EvaluationRun.objects.create(dataset=dataset, mapping=mapping, model_type="base", model_name="tiny")
    answer = client.delete(f"/api/datasets/{dataset.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "dataset_in_use")
    assert f"evaluation run {run.pk}" in answer.json()["detail"]
    run.delete()
    assert client.delete(f"/api/datasets/{dataset.pk}").status_code == 200


def test_a_new_upload_and_mapping_leave_a_run_with_what_it_was_started_on(dataset: Dataset, upload: Upload) -> None:
    mapping = mapping_set(dataset=dataset, prompt_column="prompt", response_column="response")
    run = TrainingRun.objects.create(dataset=dataset, mapping=mapping, model_name="tiny")
    mapping_set(dataset=dataset, prompt_column="response", response_column="prompt")
    upload(b"a,b\n1,2\n", "newer.csv")
    run.refresh_from_db()
    assert (run.dataset, run.mapping.version, run.mapping.prompt_column) == (dataset, 1, "prompt")


def test_a_run_goes_on_reading_its_rows_while_others_are_uploaded_and_deleted(
    client: APIClient, upload: Upload
) -> None:
    rows = [f"p{number},r{number}" for number in range(12_000)]
    content = "\n".join(["prompt,response", *rows]).encode()
    dataset = Dataset.objects.get(pk=upload(content).json()["dataset_id"])
    reading = iter_rows(dataset=dataset)
    read = [next(reading) for _ in range(10)]
    assert upload(b"a,b\n1,2\n").status_code == 200
    assert upload(content, "again.csv").json()["dataset_id"] == dataset.pk
    read += [next(reading) for _ in range(6_000)]
    assert client.delete(f"/api/datasets/{dataset.pk}").status_code == 200
    read += reading
    assert read == [(number, {"prompt": f"p{number}", "response": f"r{number}"}) for number in range(12_000)]


ROUTES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("get", "columns", None),
    ("get", "info", None),
    ("get", "mapping", None),
    ("post", "mapping", {"prompt_column": "prompt", "response_column": "response"}),
    ("post", "preview", {}),
    ("get", "preview/conversations", None),
]


def asked(client: APIClient, route: tuple[str, str, dict[str, Any] | None], dataset_id: object, place: str) -> Any:
    method, path, body = route
    query = f"?dataset_id={dataset_id}" if place == "query" else ""
    sent = {**(body or {}), "dataset_id": dataset_id} if place == "body" else body
    return getattr(client, method)(f"/api/datasets/{path}{query}", sent, format="json")


PLACES = [(route, "query") for route in ROUTES] + [(route, "body") for route in ROUTES if route[0] == "post"]


@pytest.mark.parametrize(("route", "place"), PLACES, ids=lambda value: value if isinstance(value, str) else value[1])
def test_every_route_speaks_of_the_dataset_that_is_named(
    client: APIClient, dataset: Dataset, upload: Upload, route: tuple[str, str, dict[str, Any] | None], place: str
) -> None:
    mapping_set(dataset=dataset, prompt_column="prompt", response_column="response")
    newer = upload(b"prompt,response\n1,2\n", "newer.csv").json()["dataset_id"]
    answer = asked(client, route, dataset.pk, place)
    assert (answer.status_code, answer.json()["dataset_id"]) == (200, dataset.pk)
    assert newer != dataset.pk
    assert (asked(client, route, 999, place).status_code, asked(client, route, "x", place).status_code) == (404, 400)


@pytest.mark.parametrize("path", ["/api/training/start", "/api/evaluation/run"])
def test_both_start_routes_take_a_dataset_by_its_id(
    client: APIClient, dataset: Dataset, upload: Upload, path: str
) -> None:
    upload(b"prompt,response\n1,2\n", "newer.csv")
    answer = client.post(path, {"dataset_id": dataset.pk}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "mapping_not_set")
    assert client.post(path, {"dataset_id": 999}, format="json").status_code == 404
