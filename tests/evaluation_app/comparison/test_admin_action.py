"""The admin's way to a comparison: select two runs, and land on the page or read why not."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from evaluation_app.models import EvaluationRun
from tests.evaluation_app.comparison.conftest import MakeRun
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
RUNS = "/admin/evaluation_app/evaluationrun/"


def select(client: Client, *runs: EvaluationRun) -> Any:
    data = {"action": "compare_runs", "_selected_action": [run.pk for run in runs]}
    return client.post(RUNS, data, HTTP_HOST="localhost")


def test_two_selected_runs_lead_to_their_page_with_the_base_first(
    admin_client: Client, numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter]
) -> None:
    dataset = numbers(4)
    learned = make_run(dataset, ["0"] * 4, adapter=make_adapter(dataset, trained=[0], heldout=[1, 2, 3]))
    base = make_run(dataset, ["x"] * 4)
    response = select(admin_client, learned, base)
    assert response.status_code == 302
    expected = f"baseline_run_id={base.pk}&candidate_run_id={learned.pk}&format=html"
    assert response["Location"] == f"/api/evaluation/compare/export?{expected}"
    page = admin_client.get(response["Location"], HTTP_HOST="localhost")
    assert b"Cannot tell" in b"".join(page.streaming_content)  # type: ignore[attr-defined]


def test_what_cannot_be_compared_is_said(admin_client: Client, numbers: Any, make_run: MakeRun) -> None:
    one, two = make_run(numbers(3), ["x"] * 3), make_run(numbers(4, name="b.csv"), ["x"] * 4)
    for runs, words in (([one], "not 1"), ([one, two], "their rows are not the same")):
        assert select(admin_client, *runs).status_code == 302
        assert words in admin_client.get(RUNS, HTTP_HOST="localhost").content.decode()


def test_staff_without_the_permission_cannot_compare(client: Client, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(2)
    runs = [make_run(dataset, ["x"] * 2) for _ in range(2)]
    client.force_login(get_user_model().objects.create_user("guest", is_staff=True))
    assert select(client, *runs).status_code == 403
