"""The list narrowed and paged, and what a run's detail leads to."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
RUNS = "/api/evaluation/runs"
Work = Callable[..., list[EvaluationRun]]


def start(api: APIClient, **body: Any) -> int:
    answer = api.post("/api/evaluation/run", {"sample_limit": 1, **body}, format="json")
    assert answer.status_code == 200, answer.json()
    return int(answer.json()["run_id"])


def listed(api: APIClient, query: str = "") -> list[int]:
    answer = api.get(f"{RUNS}?{query}")
    assert answer.status_code == 200, answer.json()
    return [run["id"] for run in answer.json()["runs"]]


@pytest.mark.parametrize(
    "query",
    [
        "dataset_id=0",
        "dataset_id=x",
        "model_type=tuned",
        "page=0",
        "page_size=0",
        "page_size=501",
        "page_size=many",
        "status=done",
        "adaptor=1",
    ],
)
def test_a_wrong_list_query_is_refused_by_name(api: APIClient, db: None, query: str) -> None:
    answer = api.get(f"{RUNS}?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, query.split("=")[0])


@pytest.mark.parametrize("reference", ["nobody", "../../etc", "999", "%00"])
def test_runs_of_an_adapter_that_is_not_there_are_not_an_empty_list(api: APIClient, db: None, reference: str) -> None:
    answer = api.get(f"{RUNS}?adapter={reference}")
    assert (answer.status_code, answer.json()["code"]) in {(404, "adapter_not_found"), (400, "invalid_input")}


def test_filters_narrow_the_list(
    api: APIClient, adapter: Adapter, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    dataset_id = adapter.run.dataset_id if adapter.run else 0
    base, tuned = start(api), start(api, adapter_path=adapter.name)
    other_dataset = make_dataset([("ask", "truth", "n")], name="other.csv")
    other = start(api)
    work()
    waiting = start(api, adapter_path=adapter.name, dataset_id=dataset_id)
    assert listed(api) == [other, tuned, base]
    assert listed(api, f"dataset_id={dataset_id}") == [tuned, base]
    assert listed(api, f"dataset_id={other_dataset.pk}&model_type=finetuned") == []
    assert listed(api, "model_type=base") == [other, base]
    for reference in (adapter.name, str(adapter.pk), str(adapter.path)):
        assert listed(api, f"adapter={reference}") == [tuned]
    assert listed(api, f"adapter={adapter.name}&status=all") == [waiting, tuned]
    assert listed(api, "dataset_id=999") == []


def test_without_a_page_the_list_is_whole_and_with_one_it_is_that_page(
    api: APIClient, dataset: Dataset, work: Work
) -> None:
    runs = [start(api) for _ in range(5)][::-1]
    work()
    whole = api.get(RUNS).json()
    assert [run["id"] for run in whole["runs"]] == runs
    assert (whole["page"], whole["page_size"], whole["total"], whole["total_pages"]) == (1, 5, 5, 1)
    pages = [api.get(f"{RUNS}?page={n}&page_size=2").json() for n in (1, 2, 3, 4)]
    assert [[run["id"] for run in page["runs"]] for page in pages] == [runs[:2], runs[2:4], runs[4:], []]
    assert {(page["total"], page["total_pages"]) for page in pages} == {(5, 3)}
    assert listed(api, "page=1") == runs
    assert listed(api, "page_size=3") == runs[:3]


def test_an_empty_list_has_its_figures_too(api: APIClient, db: None) -> None:
    assert api.get(RUNS).json() == {"runs": [], "page": 1, "page_size": 1, "total": 0, "total_pages": 0}


def test_every_link_of_a_finished_run_leads_somewhere(api: APIClient, adapter: Adapter, work: Work) -> None:
    base = start(api, split_adapter=adapter.name, sample_limit=None)
    tuned = start(api, adapter_path=adapter.name, sample_limit=None)
    work()
    links = api.get(f"{RUNS}/{tuned}").json()["links"]
    assert f"baseline_run_id={base}&candidate_run_id={tuned}" in links["compare_with_base"]
    page = links.pop("page")
    assert {name: api.get(link).status_code for name, link in links.items()} == dict.fromkeys(links, 200)
    assert api.get(page).status_code == 302  # to the login
    assert (
        api.get(f"{RUNS}/{base}").json()["links"] | {"compare_with_base": None, "adapter": None}
        == (api.get(f"{RUNS}/{base}").json()["links"])
    )


def test_a_waiting_run_leads_to_no_export_and_has_no_speed(api: APIClient, adapter: Adapter) -> None:
    detail = api.get(f"{RUNS}/{start(api, adapter_path=adapter.name)}").json()
    empty = ("export_csv", "export_json", "export_jsonl", "compare_with_base")
    assert {name: detail["links"][name] for name in empty} == dict.fromkeys(empty)
    assert (detail["rows_per_second"], detail["elapsed_seconds"]) == (None, None)


def test_the_speed_of_a_finished_run_is_its_rows_by_its_time(api: APIClient, dataset: Dataset, work: Work) -> None:
    start(api, sample_limit=None)
    (run,) = work()
    detail = api.get(f"{RUNS}/{run.pk}").json()
    assert detail["rows_per_second"] == pytest.approx(10 / detail["elapsed_seconds"], rel=0.01)
