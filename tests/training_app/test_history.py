"""The history of runs: list, details, metrics, events, log, and what may be deleted."""

from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import DjangoAssertNumQueries

from datasets_app.models import Dataset
from ftproject.core.models import Event
from ftproject.core.storage import log_path, run_dir
from tests.training_app.world import Api, claimed, load_dataset, numbered_rows, trained_run
from training_app import services
from training_app.models import TrainingMetric, TrainingRun
from training_app.services import stop_training

URL = "/api/training/runs"


def test_runs_are_listed_newest_first_by_page(api: Api, dataset: Dataset) -> None:
    ids = [api.post("/api/training/start", {}).json()["run_id"] for _ in range(3)]
    first = api.get(URL, page=1, page_size=2).json()
    assert [run["id"] for run in first["runs"]] == [ids[2], ids[1]]
    assert (first["total"], first["total_pages"], first["page"], first["page_size"]) == (3, 2, 1, 2)
    assert [run["id"] for run in api.get(URL + "/", page=2, page_size=2).json()["runs"]] == [ids[0]]
    assert api.get(URL, page=3, page_size=2).json()["runs"] == []


def test_runs_can_be_chosen_by_status_and_dataset(api: Api, dataset: Dataset, tmp_path: Path) -> None:
    done = trained_run(api)
    other = load_dataset(tmp_path, numbered_rows(3), name="other.csv")
    waiting = api.post("/api/training/start", {}).json()["run_id"]
    listed = api.get(URL, status="completed").json()
    assert ([run["id"] for run in listed["runs"]], listed["total"]) == ([done.pk], 1)
    assert [run["id"] for run in api.get(URL, dataset_id=other.pk).json()["runs"]] == [waiting]
    assert api.get(URL, dataset_id=other.pk, status="completed").json()["runs"] == []
    assert api.get(URL, dataset_id=999).json()["total"] == 0


def test_a_longer_list_takes_no_more_queries(
    api: Api, dataset: Dataset, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    trained_run(api, sft_config={"max_steps": 1})
    stop_training(run=TrainingRun.objects.get(pk=api.post("/api/training/start", {}).json()["run_id"]))
    with CaptureQueriesContext(connection) as few:
        api.get(URL)
    asked = len(few)
    for _ in range(6):
        stop_training(run=TrainingRun.objects.get(pk=api.post("/api/training/start", {}).json()["run_id"]))
    with django_assert_num_queries(asked):
        assert len(api.get(URL).json()["runs"]) == 8


def test_a_run_says_everything_it_was_started_with(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 3})
    body = api.get(f"{URL}/{run.pk}").json()
    assert body["requested_config"] == {"sft_config": {"max_steps": 3}}
    assert body["config"]["sft_config"]["optim"] == "adamw_torch"
    assert (body["dataset"], body["adapter"], body["status"]) == ("rows.csv", run.adapter.name, "completed")
    assert body["completed_at"].endswith("Z")


def test_every_logged_step_is_given(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 8})
    body = api.get(f"{URL}/{run.pk}/metrics").json()
    assert [metric["step"] for metric in body["metrics"]] == list(range(1, 9))
    assert {"loss", "learning_rate", "grad_norm", "eval_loss", "epoch"} <= set(body["metrics"][0])
    since = api.get(f"{URL}/{run.pk}/metrics", since_step=6).json()
    assert [metric["step"] for metric in since["metrics"]] == [7, 8]


def test_events_are_the_messages_of_the_socket(api: Api, dataset: Dataset) -> None:
    run = trained_run(api, sft_config={"max_steps": 2})
    events = api.get(f"{URL}/{run.pk}/events").json()["events"]
    assert events[0]["type"] == "training_status"
    assert events[-1]["type"] == "training_complete"
    rest = api.get(f"{URL}/{run.pk}/events", since=events[0]["id"], limit=1).json()["events"]
    assert rest == [events[1]]


def test_the_log_is_the_end_of_what_the_process_wrote(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    log_path("training", run.pk).write_text("one\ntwo\nthree\n")
    assert api.get(f"{URL}/{run.pk}/log", tail=2).json()["log"] == "two\nthree"


def test_a_run_without_a_log_has_an_empty_one(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    assert api.get(f"{URL}/{run.pk}/log").json()["log"] == ""


def test_deleting_removes_row_metrics_events_log_and_scratch(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    log_path("training", run.pk).write_text("words")
    scratch = run_dir("training", run.pk)
    api.delete(f"/api/training/adapters/{run.adapter.name}")
    answer = api.delete(f"{URL}/{run.pk}")
    assert (answer.status_code, answer.json()) == (200, {"status": "deleted", "id": run.pk})
    assert not TrainingRun.objects.exists()
    assert not TrainingMetric.objects.exists()
    assert not Event.objects.filter(run_kind="training").exists()
    assert not scratch.exists()
    assert not log_path("training", run.pk).exists()


def test_a_run_whose_adapter_is_kept_stays(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    answer = api.delete(f"{URL}/{run.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "adapter_kept")
    assert run.adapter.name in answer.json()["hint"]


def test_a_run_that_another_continues_stays_until_that_one_is_deleted(api: Api, dead: TrainingRun) -> None:
    other = api.post(f"{URL}/{dead.pk}/resume").json()["run_id"]
    answer = api.delete(f"{URL}/{dead.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "run_continued")
    assert f"runs/{other}" in answer.json()["hint"]
    api.post(f"{URL}/{other}/stop")
    assert api.delete(f"{URL}/{other}").status_code == 200
    assert api.delete(f"{URL}/{dead.pk}").status_code == 200
    assert not TrainingRun.objects.exists()


def test_a_run_that_is_resumed_while_it_is_being_deleted_stays(
    api: Api, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = services.require_deletable

    def resumed_meanwhile(run: TrainingRun) -> None:
        looked(run)
        api.post(f"{URL}/{run.pk}/resume")

    monkeypatch.setattr(services, "require_deletable", resumed_meanwhile)
    answer = api.delete(f"{URL}/{dead.pk}")
    assert (answer.status_code, answer.json()["code"]) == (409, "run_continued")
    assert TrainingRun.objects.count() == 2


def test_a_waiting_or_active_run_cannot_be_deleted(api: Api, dataset: Dataset) -> None:
    api.post("/api/training/start", {})
    run = TrainingRun.objects.get()
    assert api.delete(f"{URL}/{run.pk}").json()["code"] == "run_active"
    claimed(run)
    assert api.delete(f"{URL}/{run.pk}").json()["code"] == "run_active"
    assert TrainingRun.objects.exists()


@pytest.mark.parametrize("number", ["0", "999", "9" * 25])
@pytest.mark.parametrize("tail", ["", "/metrics", "/events", "/log"])
def test_an_unknown_run_is_404(api: Api, number: str, tail: str) -> None:
    answer = api.get(f"{URL}/{number}{tail}")
    assert (answer.status_code, answer.json()["code"]) == (404, "run_not_found")


def test_a_name_for_a_number_is_404(api: Api) -> None:
    answer = api.get(f"{URL}/newest")
    assert (answer.status_code, answer["Content-Type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    "query",
    [
        {"page": 0},
        {"page": "x"},
        {"page_size": 501},
        {"page_size": 0},
        {"page": 2**70},
        {"pagesize": 5},
        {"status": "done"},
        {"dataset_id": "x"},
        {"dataset_id": 0},
    ],
)
def test_a_wrong_page_is_refused(api: Api, query: dict[str, Any]) -> None:
    answer = api.get(URL, **query)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == next(iter(query))


@pytest.mark.parametrize(
    ("tail", "query"),
    [
        ("metrics", {"since_step": -1}),
        ("events", {"limit": 501}),
        ("events", {"since": "x"}),
        ("log", {"tail": 0}),
        ("log", {"lines": 3}),
    ],
)
def test_a_wrong_query_is_refused_by_name(api: Api, dataset: Dataset, tail: str, query: dict[str, Any]) -> None:
    run_id = api.post("/api/training/start", {}).json()["run_id"]
    answer = api.get(f"{URL}/{run_id}/{tail}", **query)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == next(iter(query))
