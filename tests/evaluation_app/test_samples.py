"""Samples in the order a person wants: worst first by any metric of the run, whatever way that metric points."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app import samples as samples_module
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.samples import SampleQuery, filtered_samples, page_of_samples
from tests.datasets_app.test_images import data_uri, png

pytestmark = pytest.mark.django_db
Work = Callable[..., list[EvaluationRun]]
OPTIONS = {"metrics": [{"name": "cer"}, {"name": "chrf"}], "normalization": {}, "confidence": False}
# Row, token_f1, cer, chrf: row 3 was skipped, row 5's cer is not defined, rows 1 and 4 are equal in all.
SCORES: list[tuple[int, float | None, dict[str, float | None]]] = [
    (0, 1.0, {"cer": 0.0, "chrf": 1.0}),
    (1, 0.5, {"cer": 0.4, "chrf": 0.6}),
    (2, 0.0, {"cer": 2.5, "chrf": 0.0}),
    (3, None, {}),
    (4, 0.5, {"cer": 0.4, "chrf": 0.6}),
    (5, 0.25, {"cer": None, "chrf": 0.3}),
]


@pytest.fixture
def run(dataset: Dataset) -> EvaluationRun:
    mapping = dataset.mappings.get()
    run = EvaluationRun.objects.create(
        dataset=dataset,
        mapping=mapping,
        model_type="base",
        status="completed",
        metric_options=OPTIONS,
        completed_at=timezone.now(),
    )
    Sample.objects.bulk_create(
        Sample(
            run=run,
            index=index,
            prompt="ask",
            ground_truth="truth",
            prediction=f"answer {index}",
            token_f1=score,
            exact_match=None if score is None else score == 1.0,
            skipped=score is None,
            scores=scores,
            num_images=0,
            label={0: "yes", 1: "no"}.get(index),
            reused=index == 2,
        )
        for index, score, scores in SCORES
    )
    return run


def ask(api: APIClient, run: EvaluationRun, query: str) -> Any:
    return api.get(f"/api/evaluation/runs/{run.pk}/samples?{query}")


def indices(api: APIClient, run: EvaluationRun, query: str) -> list[int]:
    answer = ask(api, run, query)
    assert answer.status_code == 200, answer.json()
    return [sample["index"] for sample in answer.json()["samples"]]


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("sort=worst&metric=token_f2", "Did you mean 'token_f1'?"),
        ("sort=worst&metric=chr", "Did you mean 'chrf'?"),
        ("sort=worst&metric=wer", '"metrics": ["wer"]'),
        ("sort=best&metric=confidence", "Known"),
        ("sort=best&metric=scores__cer", ""),
        ("sort=best&metric=x')%20OR%201=1--", ""),
        ("min_score=0.5&metric=anls", "anls"),
    ],
)
def test_a_metric_that_the_run_does_not_have_is_refused_with_the_nearest(
    api: APIClient, run: EvaluationRun, query: str, hint: str
) -> None:
    answer = ask(api, run, query)
    assert (answer.status_code, answer.json()["code"]) == (400, "unknown_metric")
    assert answer.json()["errors"][0]["field"] == "metric"
    assert hint in answer.json()["hint"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("sort=index", [0, 1, 2, 3, 4, 5]),
        ("sort=worst", [2, 5, 1, 4, 0, 3]),
        ("sort=best", [0, 1, 4, 5, 2, 3]),
        ("sort=worst&metric=token_f1", [2, 5, 1, 4, 0, 3]),
        ("sort=worst&metric=cer", [2, 1, 4, 0, 3, 5]),
        ("sort=best&metric=cer", [0, 1, 4, 2, 3, 5]),
        ("sort=worst&metric=chrf", [2, 5, 1, 4, 0, 3]),
        ("sort=worst&metric=exact_match", [1, 2, 4, 5, 0, 3]),
        ("sort=worst&metric=token_recall", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_the_order_follows_the_metrics_direction_ties_by_row_and_no_score_last(
    api: APIClient, run: EvaluationRun, query: str, expected: list[int]
) -> None:
    assert indices(api, run, query) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sort=worst&correct=false", [2, 5, 1, 4]),
        ("sort=worst&skipped=true", [3]),
        ("min_score=0.25", [0, 1, 4, 5]),
        ("min_score=0.25&max_score=0.5", [1, 4, 5]),
        ("min_score=0.25&max_score=0.5&sort=best", [1, 4, 5]),
        ("metric=cer&min_score=0.4", [1, 2, 4]),
        ("metric=cer&max_score=0&sort=best", [0]),
        ("metric=cer&max_score=1e300", [0, 1, 2, 4]),
        ("reused=true", [2]),
        ("reused=false&sort=worst", [5, 1, 4, 0, 3]),
        ("label=yes", [0]),
        ("label=YES", []),
        ("label=", [2, 4, 5]),
        ("q=answer%202&sort=worst", [2]),
        ("q=nothing&sort=best", []),
    ],
)
def test_filters_and_order_go_together(api: APIClient, run: EvaluationRun, query: str, expected: list[int]) -> None:
    assert indices(api, run, query) == expected
    assert ask(api, run, query).json()["total"] == len(expected)


@pytest.mark.parametrize("query", ["", "sort=worst", "sort=best&metric=cer", "sort=worst&metric=chrf&correct=false"])
@pytest.mark.parametrize("page_size", [1, 2, 4, 5, 7])
def test_pages_put_together_are_the_whole(api: APIClient, run: EvaluationRun, query: str, page_size: int) -> None:
    whole = indices(api, run, query)
    pages = [indices(api, run, f"{query}&page={n}&page_size={page_size}") for n in range(1, 8)]
    assert [index for page in pages for index in page] == whole
    assert all(len(page) in {0, page_size, len(whole) % page_size} for page in pages)


def test_a_run_without_any_sample_has_an_empty_page(api: APIClient, run: EvaluationRun) -> None:
    Sample.objects.all().delete()
    assert ask(api, run, "sort=worst&metric=cer").json() == {
        "samples": [],
        "page": 1,
        "page_size": 20,
        "total": 0,
        "total_pages": 0,
    }


def test_a_running_run_is_counted_anew_and_a_completed_one_once(run: EvaluationRun) -> None:
    EvaluationRun.objects.update(status="evaluating")
    run.refresh_from_db()

    def total() -> int:
        return page_of_samples(run=run, query=SampleQuery(sort="worst"), page=1, page_size=2)[0].total

    assert total() == 6
    Sample.objects.filter(index=5).delete()
    assert total() == 5
    run.status = "completed"
    samples_module._counted_once.cache_clear()
    assert [total(), total()] == [5, 5]
    assert samples_module._counted_once.cache_info().misses == 2


@pytest.mark.skipif(connection.vendor != "sqlite", reason="PostgreSQL plans by how many rows there are")
def test_worst_first_and_every_count_are_read_out_of_the_index_alone(run: EvaluationRun) -> None:
    """The plan is the promise; the milliseconds stand in docs/benchmarks.md."""
    query = SampleQuery(correct=False, seen=None, reused=False)
    samples = filtered_samples(run=run, query=query)
    worst = samples.filter(token_f1__isnull=False).order_by("token_f1", "index").values_list("index", flat=True)
    plan = worst[:20].explain()
    assert "COVERING INDEX samples_by_token_f1" in plan
    assert "TEMP B-TREE" not in plan


def test_each_sample_links_to_the_pictures_of_its_row_under_the_runs_mapping(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    rows = [("ask", "truth", f"{data_uri(png())}|https://pictures.example.org/a.png"), ("ask", "truth", "")]
    dataset = make_dataset(rows, image_url_columns=["note"], image_separator="|")
    with_images = dataset.mappings.get()
    run = EvaluationRun.objects.create(dataset=dataset, mapping=with_images, model_type="base", status="completed")
    for index, num_images in ((0, 2), (1, None)):  # None: made by a version that did not count them
        Sample.objects.create(run=run, index=index, prompt="ask", ground_truth="truth", num_images=num_images)
    first, second = ask(api, run, "").json()["samples"]
    path = f"/api/datasets/{dataset.pk}/rows/0/images"
    assert first["thumbnails"] == [f"{path}/{n}?size=160&mapping_version=1" for n in (0, 1)]
    assert second["thumbnails"] == []
    assert [api.get(url).status_code for url in first["thumbnails"]] == [200, 404]
    Sample.objects.update(num_images=None)
    assert ask(api, run, "").json()["samples"][0]["thumbnails"] == first["thumbnails"]
    dataset.table_path.unlink()
    assert ask(api, run, "").json()["samples"][0]["thumbnails"] == []


def test_a_run_counts_the_images_of_its_rows(api: APIClient, make_dataset: Callable[..., Dataset], work: Work) -> None:
    make_dataset(
        [("ask", "truth", f"{data_uri(png())}|bad.png"), ("ask", "truth", "")],
        image_url_columns=["note"],
        image_separator="|",
    )
    api.post("/api/evaluation/run", {}, format="json")
    (run,) = work()
    assert list(run.samples.order_by("index").values_list("num_images", flat=True)) == [2, 0]
