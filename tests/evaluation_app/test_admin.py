"""The admin's pages of evaluation: facts are read-only, stop and delete go through the services."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from evaluation_app.models import EvaluationRun, Sample
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
RUNS = "/admin/evaluation_app/evaluationrun/"
SAMPLES = "/admin/evaluation_app/sample/"


@pytest.fixture
def finished(api: APIClient, adapter: Adapter, work: Callable[..., list[EvaluationRun]]) -> EvaluationRun:
    api.post("/api/evaluation/run", {"adapter_path": adapter.name}, format="json")
    return work()[0]


def act(client: Client, action: str, run: EvaluationRun) -> str:
    data = {"action": action, "_selected_action": [run.pk]}
    return client.post(RUNS, data, follow=True, HTTP_HOST="localhost").content.decode()


def get(client: Client, url: str) -> str:
    response = client.get(url, HTTP_HOST="localhost")
    assert response.status_code == 200
    return response.content.decode()


def test_a_stranger_sees_nothing(client: Client, finished: EvaluationRun) -> None:
    for url in (RUNS, SAMPLES, f"{RUNS}{finished.pk}/change/"):
        response = client.get(url, HTTP_HOST="localhost")
        assert (response.status_code, "login" in response["Location"]) == (302, True)


def test_staff_without_the_permission_may_neither_look_nor_delete(client: Client, finished: EvaluationRun) -> None:
    client.force_login(get_user_model().objects.create_user("guest", is_staff=True))
    assert client.get(RUNS, HTTP_HOST="localhost").status_code == 403
    act(client, "delete_runs", finished)
    assert EvaluationRun.objects.count() == 1


def test_facts_cannot_be_added_or_edited(admin_client: Client, finished: EvaluationRun) -> None:
    for url in (f"{RUNS}add/", f"{SAMPLES}add/"):
        assert admin_client.get(url, HTTP_HOST="localhost").status_code == 403
    admin_client.post(f"{RUNS}{finished.pk}/change/", {"status": "error"}, HTTP_HOST="localhost")
    admin_client.post(f"{SAMPLES}{Sample.objects.earliest('id').pk}/delete/", {"post": "yes"}, HTTP_HOST="localhost")
    finished.refresh_from_db()
    assert (finished.status, Sample.objects.count()) == ("completed", 10)


@pytest.mark.parametrize("status", ["evaluating", "queued"])
def test_a_run_that_has_not_ended_is_not_deleted_and_the_page_says_why(
    admin_client: Client, finished: EvaluationRun, status: str
) -> None:
    EvaluationRun.objects.update(status=status)
    assert "has not ended" in act(admin_client, "delete_runs", finished)
    assert Sample.objects.count() == 10


def test_a_finished_run_cannot_be_stopped_and_the_page_says_why(admin_client: Client, finished: EvaluationRun) -> None:
    assert "is not running" in act(admin_client, "stop_runs", finished)


def test_the_stop_action_sets_the_flag(admin_client: Client, finished: EvaluationRun) -> None:
    EvaluationRun.objects.update(status="evaluating")
    act(admin_client, "stop_runs", finished)
    finished.refresh_from_db()
    assert finished.status == "stopping"
    assert finished.stop_requested_at is not None


def test_the_delete_action_takes_run_and_samples(admin_client: Client, finished: EvaluationRun) -> None:
    assert f"Run {finished.pk} is deleted." in act(admin_client, "delete_runs", finished)
    assert (EvaluationRun.objects.count(), Sample.objects.count()) == (0, 0)


def test_the_list_links_to_adapter_dataset_and_samples(
    admin_client: Client, finished: EvaluationRun, adapter: Adapter
) -> None:
    page = get(admin_client, RUNS)
    assert reverse("admin:training_app_adapter_change", args=[adapter.pk]) in page
    assert reverse("admin:datasets_app_dataset_change", args=[finished.dataset_id]) in page
    assert f"{RUNS}{finished.pk}/samples/" in page


def test_the_run_and_sample_pages_show_the_facts(admin_client: Client, finished: EvaluationRun) -> None:
    assert "tiny-qwen3-vl" in get(admin_client, f"{RUNS}{finished.pk}/change/")
    assert "number 4" in get(admin_client, f"{SAMPLES}{finished.samples.get(index=4).pk}/change/")


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("", 10),
        ("?run__id__exact={run}", 10),
        ("?run__id__exact=0", 0),
        ("?skipped__exact=1", 1),
        ("?seen_in_training__exact=1", 6),
        ("?q=number+7", 1),
    ],
)
def test_samples_are_filtered_and_searched(
    admin_client: Client, finished: EvaluationRun, query: str, rows: int
) -> None:
    response: Any = admin_client.get(SAMPLES + query.format(run=finished.pk), HTTP_HOST="localhost")
    assert response.context["cl"].result_count == rows


@pytest.mark.parametrize(("query", "rows"), [("?q=adapter_1", 1), ("?q=nothing", 0), ("?status__exact=error", 0)])
def test_runs_are_filtered_and_searched(admin_client: Client, finished: EvaluationRun, query: str, rows: int) -> None:
    response: Any = admin_client.get(RUNS + query, HTTP_HOST="localhost")
    assert response.context["cl"].result_count == rows


def test_the_runs_of_one_adapter_are_found_from_its_page(
    admin_client: Client, finished: EvaluationRun, adapter: Adapter
) -> None:
    response: Any = admin_client.get(f"{RUNS}?adapter__id__exact={adapter.pk}", HTTP_HOST="localhost")
    assert response.context["cl"].result_count == 1
