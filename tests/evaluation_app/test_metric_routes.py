"""Metrics, normalisation and confidence from the request to the figures of the run, and what the request refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun
from ftproject.core.models import Event
from ftproject.engine.labels import MOST_LABELS, MOST_SCORED_LABELS
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
RUN = "/api/evaluation/run"
Work = Callable[..., list[EvaluationRun]]


def start(api: APIClient, **body: Any) -> EvaluationRun:
    response = api.post(RUN, body, format="json")
    assert response.status_code == 200, response.content
    return EvaluationRun.objects.get(pk=response.json()["run_id"])


def refused(api: APIClient, body: dict[str, Any], code: str) -> dict[str, Any]:
    response = api.post(RUN, body, format="json")
    assert response.status_code == 400, response.content
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    assert EvaluationRun.objects.count() == 0
    return problem


def test_a_run_keeps_its_options_with_every_parameter(api: APIClient, dataset: Dataset) -> None:
    run = start(api, metrics=["cer", {"name": "numeric", "tolerance": 0.01}], normalization={"casefold": True})
    assert run.metric_options == {
        "metrics": [
            {"name": "cer"},
            {"name": "numeric", "tolerance": 0.01, "relative_tolerance": 0.0, "decimal_separator": "."},
        ],
        "normalization": {"casefold": True, "strip_punctuation": False, "extract": None},
        "confidence": False,
    }
    detail = api.get(f"/api/evaluation/runs/{run.pk}").json()
    assert detail["metric_options"] == run.metric_options


def test_every_metric_stands_in_all_seen_and_unseen_and_on_the_samples(
    api: APIClient, adapter: Adapter, work: Work
) -> None:
    names = ["cer", "wer", "chrf", "rouge_l", "anls", "numeric", "json_fields"]
    start(api, adapter_path=adapter.name, metrics=names)
    (run,) = work()
    expected = {"cer": 0.0, "wer": 0.0, "chrf": 1.0, "rouge_l": 1.0, "anls": 1.0, "numeric": 1.0, "json_fields": None}
    for part in ("all", "seen", "unseen"):
        assert {name: run.metrics[part][name] for name in names} == expected
    assert (run.metrics["seen"]["num_samples"], run.metrics["unseen"]["num_samples"]) == (6, 4)
    samples = api.get(f"/api/evaluation/runs/{run.pk}/samples").json()["samples"]
    assert [sample["scores"] for sample in samples] == [{} if sample["skipped"] else expected for sample in samples]
    assert samples[0]["score_details"]["cer"] == {"edits": 0, "reference_length": 8}


def test_a_metric_that_no_row_defines_is_null_and_said(api: APIClient, adapter: Adapter, work: Work) -> None:
    start(api, adapter_path=adapter.name, metrics=["json_fields"])
    (run,) = work()
    assert run.metrics["all"]["json_fields"] is None
    assert run.metrics["all"]["details"]["json_fields"]["ground_truth_invalid_json"] == 9
    assert "json_fields is undefined for each of the 9 evaluated rows." in run.warnings


def test_a_pattern_that_matches_nothing_is_counted_and_said(api: APIClient, adapter: Adapter, work: Work) -> None:
    start(api, adapter_path=adapter.name, normalization={"extract": r"Answer: (\S+)"})
    start(api, adapter_path=adapter.name, normalization={"extract": r"number (\S+)"})
    without, found = work()
    counts = {"predictions_without_match": 9, "ground_truths_without_match": 9}
    assert without.metrics["all"]["details"]["extract"] == counts
    assert any("matches no prediction" in warning for warning in without.warnings)
    assert found.metrics["all"]["details"]["extract"] == dict.fromkeys(counts, 0)
    assert not any("matches no prediction" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"metrics": ["blue"]}, "metrics.0", "unknown_metric"),
        ({"metrics": "cer"}, "metrics", "invalid_type"),
        ({"metrics": [{"name": "numeric", "tolerance": -1}]}, "metrics.0.tolerance", "out_of_range"),
        ({"metrics": [{"name": "cer", "x": 1}]}, "metrics.0.x", "unknown_field"),
        ({"normalization": {"lower": True}}, "normalization.lower", "unknown_field"),
        ({"normalization": {"extract": "(?<=a)b"}}, "normalization.extract", "invalid_pattern"),
        ({"normalization": "casefold"}, "normalization", "invalid_type"),
    ],
)
def test_a_wrong_option_is_400_and_named(
    api: APIClient, dataset: Dataset, body: dict[str, Any], field: str, code: str
) -> None:
    assert refused(api, body, code)["errors"][0]["field"] == field


def test_an_unknown_metric_is_400_with_the_nearest_and_all_known(api: APIClient, dataset: Dataset) -> None:
    problem = refused(api, {"metrics": ["rogue_l"]}, "unknown_metric")
    assert "did you mean 'rouge_l'?" in problem["detail"]
    assert "json_fields" in problem["hint"]


@pytest.mark.parametrize(
    "body",
    [
        r'{"metrics": ["\ud800"]}',
        r'{"metrics": [{"name": "cer", "\ud800": 1}]}',
        r'{"normalization": {"\ud800": 1}}',
        r'{"normalization": {"extract": "\ud800"}}',
        r'{"normalization": {"extract": "\u0000"}}',
        r'{"metrics": [{"name": "numeric", "tolerance": 1e999}]}',
        r'{"metrics": [{"name": "numeric", "tolerance": NaN}]}',
    ],
)
def test_hostile_json_is_400_not_a_crash(api: APIClient, dataset: Dataset, body: str) -> None:
    response = api.post(RUN, body, content_type="application/json")
    assert response.status_code == 400, response.content
    assert "code" in json.loads(response.content)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_confidence_is_a_boolean(api: APIClient, dataset: Dataset, value: Any) -> None:
    assert refused(api, {"confidence": value}, "invalid_input")["errors"][0]["field"] == "confidence"


def test_confidence_needs_classification_mode(api: APIClient, dataset: Dataset) -> None:
    refused(api, {"confidence": True}, "confidence_unused")


def test_a_column_of_free_text_is_no_column_of_labels(api: APIClient, make_dataset: Callable[..., Dataset]) -> None:
    make_dataset([("p", f"answer {n}", "x") for n in range(MOST_LABELS + 1)])
    assert "answer" in refused(api, {"classification_mode": True}, "too_many_labels")["detail"]


def test_confidence_over_many_labels_is_refused_before_it_takes_a_night(
    api: APIClient, make_dataset: Callable[..., Dataset]
) -> None:
    make_dataset([("p", f"answer {n}", "x") for n in range(MOST_SCORED_LABELS + 1)])
    refused(api, {"classification_mode": True, "confidence": True}, "too_many_labels")
    start(api, classification_mode=True)


def test_confidence_gives_each_sample_its_probabilities_and_the_run_its_calibration(
    api: APIClient, make_dataset: Callable[..., Dataset], make_adapter: Callable[..., Adapter], work: Work
) -> None:
    dataset = make_dataset([(f"p{n}", "Yes" if n % 2 else "no", "x") for n in range(6)])
    adapter = make_adapter(dataset, trained=[0, 1], heldout=[2, 3, 4, 5])
    start(api, adapter_path=adapter.name, classification_mode=True, confidence=True)
    (run,) = work()
    samples = api.get(f"/api/evaluation/runs/{run.pk}/samples").json()["samples"]
    assert [sample["confidence"] for sample in samples] == pytest.approx([0.9] * 6)
    assert samples[1]["label_probabilities"] == pytest.approx({"no": 0.1, "yes": 0.9})
    calibration = run.metrics["classification"]["calibration"]
    assert calibration["expected_calibration_error"] == pytest.approx(0.1)
    assert (calibration["auroc"], calibration["rows"], calibration["without_confidence"]) == (1.0, 6, 0)
    assert run.metrics["classification"]["unseen"]["calibration"]["rows"] == 4
    json.dumps(run.metrics, allow_nan=False)


def test_answers_that_are_no_label_have_probabilities_but_no_confidence(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([(f"p{n}", "Yes" if n % 2 else "no", "x") for n in range(4)])
    start(api, classification_mode=True, confidence=True)
    (run,) = work()
    assert set(run.samples.values_list("confidence", flat=True)) == {None}
    assert run.samples.get(index=0).label_probabilities == {"no": 0.5, "yes": 0.5}
    calibration = run.metrics["classification"]["calibration"]
    assert (calibration["rows"], calibration["without_confidence"], calibration["auroc"]) == (0, 4, 0.5)


def test_classification_is_given_for_seen_and_unseen_rows(
    api: APIClient, make_dataset: Callable[..., Dataset], make_adapter: Callable[..., Adapter], work: Work
) -> None:
    dataset = make_dataset([(f"p{n}", "red" if n % 2 else "blue", "x") for n in range(6)])
    start(
        api, adapter_path=make_adapter(dataset, trained=[0, 1], heldout=[2]).name, classification_mode=True, rows="all"
    )
    start(api, classification_mode=True)
    tuned, base = work()
    figures = tuned.metrics["classification"]
    assert figures["calibration"] is None
    assert figures["seen"]["confusion_matrix"] == [[1, 0], [0, 1]]
    assert figures["unseen"]["confusion_matrix"] == [[2, 0], [0, 2]]
    assert (base.metrics["classification"]["seen"], base.metrics["classification"]["unseen"]) == (None, None)


def test_an_adapter_judged_only_on_rows_it_trained_on_is_a_warning(
    api: APIClient, adapter: Adapter, work: Work
) -> None:
    start(api, adapter_path=adapter.name, rows="trained")
    start(api, adapter_path=adapter.name, rows="heldout")
    start(api, adapter_path=adapter.name)
    start(api, split_adapter=adapter.name, rows="trained")
    trained, heldout, every, base = work()
    assert "trained on every one of the 6 evaluated rows" in trained.warnings[0]
    assert not any("trained on every one" in warning for run in (heldout, every, base) for warning in run.warnings)


def test_a_run_of_skipped_rows_says_that_there_is_nothing_to_judge(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([("p", "a", ""), ("q", "b", "")], mandatory_columns=["note"])
    start(api, metrics=["cer", "numeric"])
    (run,) = work()
    assert run.warnings == ["All 2 rows were skipped: there is nothing to judge."]
    assert run.metrics["all"]["cer"] is run.metrics["all"]["numeric"] is None


def test_the_label_is_read_from_the_extracted_answer(
    api: APIClient, make_dataset: Callable[..., Dataset], make_adapter: Callable[..., Adapter], work: Work
) -> None:
    dataset = make_dataset([("p0", "Not blue. Answer: red", "x"), ("p1", "Not red. Answer: blue", "x")])
    body = {"classification_mode": True, "normalization": {"extract": "Answer: (.*)"}, "positive_label": "red"}
    start(api, adapter_path=make_adapter(dataset).name, **body)
    (run,) = work()
    assert run.metrics["classification"]["labels"] == ["blue", "red"]
    assert run.metrics["classification"]["confusion_matrix"] == [[1, 0], [0, 1]]


def test_the_same_key_with_other_metrics_is_another_request(api: APIClient, dataset: Dataset) -> None:
    def post(metric: str) -> Any:
        return api.post(RUN, {"metrics": [metric]}, format="json", HTTP_IDEMPOTENCY_KEY="k1")

    first, again, other = post("cer"), post("cer"), post("wer")
    assert first.json()["run_id"] == again.json()["run_id"]
    assert other.status_code == 409


@pytest.mark.parametrize(("labels", "in_list"), [(20, True), (21, False)])
def test_the_tables_of_many_labels_stand_on_the_run_itself_only(
    api: APIClient,
    make_dataset: Callable[..., Dataset],
    make_adapter: Callable[..., Adapter],
    work: Work,
    labels: int,
    in_list: bool,
) -> None:
    dataset = make_dataset([("p", f"kind {n}", "x") for n in range(labels)])
    start(api, adapter_path=make_adapter(dataset, trained=[0], heldout=[1]).name, classification_mode=True)
    (run,) = work()
    detail = api.get(f"/api/evaluation/runs/{run.pk}").json()["metrics"]["classification"]
    assert len(detail["confusion_matrix"]) == len(detail["per_class"]) == labels
    (listed,) = api.get("/api/evaluation/runs").json()["runs"]
    event = Event.objects.get(type="eval_complete").data
    for figures in (listed["metrics"]["classification"], event["metrics"]["classification"]):
        for part in (figures, figures["seen"], figures["unseen"]):
            assert (part["confusion_matrix"] is not None) is in_list
            assert (part["per_class"] is not None) is in_list
        assert figures["accuracy"] == 1.0
        assert len(figures["labels"]) == labels
