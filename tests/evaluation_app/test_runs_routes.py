"""Status, list, detail, samples, stop and delete of evaluation runs."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun, Sample
from ftproject.core.jobs import claim_job
from ftproject.core.models import Event
from ftproject.core.storage import log_path, run_dir
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
RUNS = "/api/evaluation/runs"
STATUS = "/api/evaluation/status"
STOP = "/api/evaluation/stop"
DOCUMENT_FIELDS = {
    "id",
    "model_type",
    "eval_mode",
    "num_samples",
    "num_skipped",
    "exact_match_accuracy",
    "token_precision",
    "token_recall",
    "token_f1",
    "created_at",
}
SAMPLE_FIELDS = {
    "index",
    "prompt",
    "ground_truth",
    "prediction",
    "exact_match",
    "token_f1",
    "token_precision",
    "token_recall",
    "skipped",
    "skipped_reason",
}
Work = Callable[..., list[EvaluationRun]]


def start(api: APIClient, **body: Any) -> int:
    return int(api.post("/api/evaluation/run", body, format="json").json()["run_id"])


@pytest.fixture
def finished(api: APIClient, adapter: Adapter, work: Work) -> EvaluationRun:
    start(api, adapter_path=adapter.name)
    return work()[0]


@pytest.mark.parametrize("run_id", [999, 2**63, 10**30])
@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("get", "{runs}/{id}"),
        ("delete", "{runs}/{id}"),
        ("get", "{runs}/{id}/samples"),
        ("post", "{runs}/{id}/stop"),
        ("get", "/api/evaluation/export/{id}"),
    ],
)
def test_an_unknown_run_is_not_found(api: APIClient, method: str, route: str, run_id: int) -> None:
    response = getattr(api, method)(route.format(runs=RUNS, id=run_id))
    assert (response.status_code, response.json()["code"]) == (404, "run_not_found")
    assert response.json()["hint"]


@pytest.mark.parametrize("run_id", ["abc", "-1", "1.5"])
def test_what_is_no_number_is_no_route(api: APIClient, run_id: str) -> None:
    response = api.get(f"{RUNS}/{run_id}")
    assert (response.status_code, response["Content-Type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page_size=0",
        "page_size=501",
        "page=99999999999999999999",
        "page=x",
        "correct=maybe",
        "skipped=7",
        "seen=x",
        "order=index",
        "sort=random",
        "sort=Worst",
        "reused=perhaps",
        "metric=token_f1",
        "metric=token_f1&sort=index",
        "min_score=x&sort=worst",
        "min_score=nan",
        "max_score=inf",
        "min_score=1&max_score=0",
        "q=%00",
        "label=%00",
    ],
)
def test_a_wrong_sample_query_is_refused_by_name(api: APIClient, finished: EvaluationRun, query: str) -> None:
    response = api.get(f"{RUNS}/{finished.pk}/samples?{query}")
    assert response.status_code == 400, response.content
    assert response.json()["errors"][0]["field"] == query.split("=")[0]


def test_a_wrong_list_query_is_refused(api: APIClient) -> None:
    assert api.get(f"{RUNS}?status=some").status_code == 400
    assert api.get(f"{RUNS}?state=all").status_code == 400


def test_stop_when_nothing_runs_is_a_conflict(api: APIClient, finished: EvaluationRun) -> None:
    for route in (STOP, f"{RUNS}/{finished.pk}/stop"):
        response = api.post(route)
        assert (response.status_code, response.json()["code"]) == (409, "no_active_run")
        assert response.json()["hint"]


@pytest.mark.parametrize("status", ["queued", "loading_model", "evaluating", "stopping"])
def test_a_run_that_has_not_ended_is_not_deleted(api: APIClient, finished: EvaluationRun, status: str) -> None:
    EvaluationRun.objects.update(status=status)
    response = api.delete(f"{RUNS}/{finished.pk}")
    assert (response.status_code, response.json()["code"]) == (409, "run_active")
    assert Sample.objects.count() == 10


@pytest.mark.parametrize(
    ("method", "route"),
    [("get", "/api/evaluation/run"), ("post", STATUS), ("get", STOP), ("post", RUNS), ("put", f"{RUNS}/1")],
)
def test_a_wrong_method_is_a_problem_too(api: APIClient, method: str, route: str) -> None:
    response = getattr(api, method)(route)
    assert (response.status_code, response["Content-Type"]) == (405, "application/problem+json")


def test_before_the_first_run_the_status_is_idle(api: APIClient) -> None:
    answer = api.get(STATUS).json()
    assert (answer["running"], answer["model_type"], answer["status"], answer["run_id"]) == (False, None, "idle", None)


def test_it_is_running_from_the_answer_of_the_start_until_the_end(api: APIClient, dataset: Dataset, work: Work) -> None:
    run_id = start(api)
    before = api.get(STATUS).json()
    assert (before["running"], before["model_type"], before["run_id"]) == (True, "base", run_id)
    assert (before["status"], before["queue_position"]) == ("queued", 1)
    work()
    after = api.get(STATUS).json()
    assert (after["running"], after["status"], after["current"], after["total"]) == (False, "completed", 10, 10)
    assert (after["eta"], after["error"], after["queue_position"]) == (None, None, None)


def test_the_status_shows_the_running_one_not_the_newest(api: APIClient, dataset: Dataset) -> None:
    first = start(api)
    start(api)
    assert claim_job(EvaluationRun.objects.get(pk=first))
    answer = api.get(STATUS).json()
    assert (answer["run_id"], answer["status"]) == (first, "loading_model")


def test_a_cancelled_newest_run_does_not_hide_a_waiting_one(api: APIClient, dataset: Dataset) -> None:
    first, second = start(api), start(api)
    assert api.post(f"{RUNS}/{second}/stop").json()["status"] == "cancelled"
    assert api.get(STATUS).json() | {"running": True, "run_id": first} == api.get(STATUS).json()


def test_stop_asks_the_running_run_to_stop(api: APIClient, dataset: Dataset) -> None:
    first = start(api)
    start(api)
    assert claim_job(EvaluationRun.objects.get(pk=first))
    answers = [api.post(STOP) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json()["run_id"] for answer in answers] == [first, first]
    assert answers[0].json()["status"] == "stopping"
    assert Event.objects.filter(type="eval_status").latest("id").data["status"] == "stopping"
    assert api.get(STATUS).json()["running"] is True


def test_stop_takes_the_next_waiting_run_out_of_the_queue(api: APIClient, dataset: Dataset) -> None:
    run_id = start(api)
    assert api.post(STOP).json()["status"] == "cancelled"
    run = EvaluationRun.objects.get(pk=run_id)
    assert (run.status, run.error) == ("error", "Cancelled before it started.")
    assert api.get(STATUS).json()["running"] is False


def test_the_list_has_the_documents_fields_newest_first(
    api: APIClient, finished: EvaluationRun, adapter: Adapter, work: Work
) -> None:
    newer = start(api, sample_limit=2)
    work()
    runs = api.get(RUNS).json()["runs"]
    assert [run["id"] for run in runs] == [newer, finished.pk]
    assert set(runs[0]) >= DOCUMENT_FIELDS
    assert (runs[1]["adapter"], runs[1]["model_type"], runs[1]["status"]) == (adapter.name, "finetuned", "completed")
    assert (runs[0]["adapter"], runs[0]["sample_limit"], runs[0]["num_samples"]) == (None, 2, 2)
    assert runs[0]["created_at"].endswith("Z")


def test_a_run_appears_in_the_list_only_when_it_is_finished(
    api: APIClient, finished: EvaluationRun, work: Work
) -> None:
    waiting = start(api)
    assert [run["id"] for run in api.get(RUNS).json()["runs"]] == [finished.pk]
    assert [run["id"] for run in api.get(f"{RUNS}?status=all").json()["runs"]] == [waiting, finished.pk]
    api.post(STOP)
    assert [run["id"] for run in api.get(f"{RUNS}/").json()["runs"]] == [finished.pk]


def test_a_list_of_many_runs_takes_few_queries(
    api: APIClient, finished: EvaluationRun, work: Work, django_assert_max_num_queries: Any
) -> None:
    for _ in range(5):
        start(api, sample_limit=1)
    work()
    with django_assert_max_num_queries(2):
        assert len(api.get(RUNS).json()["runs"]) == 6


def test_the_detail_says_everything_also_before_the_end(
    api: APIClient, finished: EvaluationRun, adapter: Adapter
) -> None:
    detail = api.get(f"{RUNS}/{finished.pk}").json()
    assert set(detail) >= DOCUMENT_FIELDS
    assert (detail["adapter_path"], detail["split_adapter"]) == (str(adapter.path), adapter.name)
    assert detail["generation_params"]["do_sample"] is False
    assert detail["metrics"]["unseen"]["exact_match_accuracy"] == 1.0
    assert (detail["dataset"], detail["mapping_version"], detail["backend"]) == ("rows.csv", 1, "fake")
    waiting = api.get(f"{RUNS}/{start(api)}").json()
    assert (waiting["status"], waiting["queue_position"], waiting["num_samples"]) == ("queued", 1, None)


def test_samples_have_the_documents_fields_sorted_by_index(api: APIClient, finished: EvaluationRun) -> None:
    page = api.get(f"{RUNS}/{finished.pk}/samples?page=1&page_size=20").json()
    assert [sample["index"] for sample in page["samples"]] == list(range(10))
    assert set(page["samples"][0]) >= SAMPLE_FIELDS
    assert (page["page"], page["page_size"], page["total"], page["total_pages"]) == (1, 20, 10, 1)
    skipped = page["samples"][3]
    assert (skipped["skipped"], skipped["prediction"], skipped["exact_match"]) == (True, "", None)
    assert "note" in skipped["skipped_reason"]


def test_pages_share_out_the_samples(api: APIClient, finished: EvaluationRun) -> None:
    pages = [api.get(f"{RUNS}/{finished.pk}/samples?page={n}&page_size=4").json() for n in (1, 2, 3, 4)]
    assert [[sample["index"] for sample in page["samples"]] for page in pages] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
        [],
    ]
    assert pages[0]["total_pages"] == 3


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("correct=true", [0, 1, 2, 4, 5, 6, 7, 8, 9]),
        ("correct=false", []),
        ("skipped=true", [3]),
        ("skipped=false&seen=false", [7, 8, 9]),
        ("seen=true", [0, 1, 2, 4, 5, 6]),
        ("q=IS 7", [7]),
        ("q=number 1", [1]),
        ("q=%25", []),
        ("q=_", []),
    ],
)
def test_filters_choose_the_samples(api: APIClient, finished: EvaluationRun, query: str, expected: list[int]) -> None:
    page = api.get(f"{RUNS}/{finished.pk}/samples?{query}").json()
    assert [sample["index"] for sample in page["samples"]] == expected
    assert page["total"] == len(expected)


def test_samples_of_a_run_that_is_still_going_are_there(api: APIClient, dataset: Dataset) -> None:
    run_id = start(api)
    assert api.get(f"{RUNS}/{run_id}/samples").json()["samples"] == []


def test_a_deleted_run_is_gone_with_everything_it_left(api: APIClient, finished: EvaluationRun) -> None:
    log_path("evaluation", finished.pk).write_text("words")
    folder = run_dir("evaluation", finished.pk)
    response = api.delete(f"{RUNS}/{finished.pk}")
    assert (response.status_code, response.json()) == (200, {"status": "deleted", "id": finished.pk})
    assert api.get(f"{RUNS}/{finished.pk}").status_code == 404
    assert Sample.objects.count() == 0
    assert not Event.objects.filter(run_kind="evaluation").exists()
    assert not folder.exists()
    assert not log_path("evaluation", finished.pk).exists()


def test_an_adapter_and_a_dataset_with_a_run_cannot_be_deleted(
    api: APIClient, finished: EvaluationRun, adapter: Adapter
) -> None:
    assert api.delete(f"/api/training/adapters/{adapter.name}").json()["code"] == "adapter_in_use"
    assert api.delete(f"/api/datasets/{finished.dataset_id}").json()["code"] == "dataset_in_use"
    assert adapter.path.is_dir()
