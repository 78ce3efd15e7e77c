"""The admin's page of a run: explained, worst first, with pictures, and nothing in it that a cell could run."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun, Sample
from tests.datasets_app.test_images import data_uri, png
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
Work = Callable[..., list[EvaluationRun]]


@pytest.fixture
def finished(api: APIClient, adapter: Adapter, work: Work) -> EvaluationRun:
    api.post("/api/evaluation/run", {"adapter_path": adapter.name, "metrics": ["cer"]}, format="json")
    return work()[0]


def url(run_id: int, query: str = "") -> str:
    return f"/admin/evaluation_app/evaluationrun/{run_id}/samples/?{query}"


def page(client: Client, run: EvaluationRun, query: str = "") -> str:
    response = client.get(url(run.pk, query), HTTP_HOST="localhost")
    assert response.status_code == 200
    return response.content.decode()


def rows_of(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"<dt>Row</dt><dd>(\d+)", text)]


def test_a_stranger_is_sent_to_the_login(client: Client, finished: EvaluationRun) -> None:
    response = client.get(url(finished.pk), HTTP_HOST="localhost")
    assert (response.status_code, "login" in response["Location"]) == (302, True)


def test_staff_without_the_permission_sees_nothing(client: Client, finished: EvaluationRun) -> None:
    client.force_login(get_user_model().objects.create_user("guest", is_staff=True))
    assert client.get(url(finished.pk), HTTP_HOST="localhost").status_code == 403


def test_a_run_that_is_not_there_is_not_found(admin_client: Client) -> None:
    assert admin_client.get(url(77), HTTP_HOST="localhost").status_code == 404


def test_nothing_can_be_written_through_it(admin_client: Client, finished: EvaluationRun) -> None:
    admin_client.post(url(finished.pk), {"status": "error"}, HTTP_HOST="localhost")
    finished.refresh_from_db()
    assert finished.status == "completed"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sort=sideways", "sideways"),
        ("metric=wer", "was not scored by"),
        ("page=0", "Page:"),
        ("correct=perhaps", "Correct:"),
        ("anything=1", "Anything:"),
    ],
)
def test_a_wrong_query_is_said_and_the_samples_are_shown_all_the_same(
    admin_client: Client, finished: EvaluationRun, query: str, said: str
) -> None:
    text = page(admin_client, finished, query)
    assert said in text
    assert len(rows_of(text)) == 10


def test_cells_are_text_and_never_markup(admin_client: Client, finished: EvaluationRun) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    Sample.objects.update(prompt=attack, ground_truth=attack, prediction=attack, skipped_reason=attack)
    EvaluationRun.objects.update(warnings=[attack], model_name=attack, error=attack)
    Dataset.objects.update(filename=attack)
    for query in ("", f"q={attack}", f"sort={attack}", f"metric={attack}&sort=worst"):
        text = page(admin_client, finished, query)
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "&lt;script&gt;alert(1)" in text


def test_the_page_explains_the_run_and_shows_its_worst_samples_first(
    admin_client: Client, finished: EvaluationRun, adapter: Adapter
) -> None:
    Sample.objects.filter(index=6).update(token_f1=0.25, exact_match=False, prediction="a wrong answer")
    text = page(admin_client, finished)
    assert rows_of(text) == [6, 0, 1, 2, 4, 5, 7, 8, 9, 3]
    for words in (adapter.name, "rows.csv", "unseen", "exact_match_accuracy", "cer", "a wrong answer", "not seen in"):
        assert words in text
    assert f"/api/evaluation/export/{finished.pk}?format=csv" in text
    assert rows_of(page(admin_client, finished, "sort=index&metric=token_f1&skipped=&q=")) == list(range(10))
    assert rows_of(page(admin_client, finished, "correct=false")) == [6]
    assert rows_of(page(admin_client, finished, "sort=best&metric=cer&q=number 7")) == [7]


def test_pages_lead_to_each_other_and_keep_the_question(admin_client: Client, finished: EvaluationRun) -> None:
    text = page(admin_client, finished, "sort=index&page_size=4&page=2")
    assert rows_of(text) == [4, 5, 6, 7]
    links = re.findall(r'<a href="\?([^"]+)">(earlier|further)</a>', text)
    assert [word for _, word in links] == ["earlier", "further"]
    further = links[1][0].replace("&amp;", "&")
    assert rows_of(page(admin_client, finished, further)) == [8, 9]


def test_a_run_without_any_figure_has_a_page_too(admin_client: Client, api: APIClient, dataset: Dataset) -> None:
    api.post("/api/evaluation/run", {}, format="json")
    text = page(admin_client, EvaluationRun.objects.get())
    assert "queued" in text
    assert "No sample fits." in text


def test_each_sample_shows_the_pictures_of_its_row(
    admin_client: Client, api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([("ask", "truth", data_uri(png()))], image_url_columns=["note"])
    api.post("/api/evaluation/run", {}, format="json")
    (run,) = work()
    text = page(admin_client, run).replace("&amp;", "&")
    sources = re.findall(r'<img src="([^"]+)"', text)
    assert len(sources) == 1
    response: Any = admin_client.get(sources[0], HTTP_HOST="localhost")
    assert (response.status_code, response["Content-Type"]) == (200, "image/jpeg")
