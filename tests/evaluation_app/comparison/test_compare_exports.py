"""GET /api/evaluation/compare/export: joined rows as CSV and JSON, complete, in order, escaped, streamed."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun
from tests.evaluation_app.comparison.conftest import SKIP, MakeRun, answers_right_in
from training_app.models import Adapter

pytestmark = pytest.mark.django_db


def export(api: APIClient, runs: list[EvaluationRun], **query: Any) -> str:
    asked = {"baseline_run_id": runs[0].pk, "candidate_run_id": runs[1].pk, "num_resamples": 100, **query}
    response = api.get("/api/evaluation/compare/export", asked)
    assert response.status_code == 200, response.content
    assert response.streaming
    return b"".join(response.streaming_content).decode()  # type: ignore[attr-defined]


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture
def runs(numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter]) -> list[EvaluationRun]:
    """Rows 0 to 5: both right, broken, fixed, skipped in one, only in one, not in any."""
    dataset = numbers(7)
    adapter = make_adapter(dataset, trained=[0, 1], heldout=[2, 3, 4, 5])
    base = make_run(dataset, {0: "0", 1: "1", 2: "x", 3: SKIP, 4: "4"}, metrics=["cer"])
    learned = make_run(dataset, {0: "0", 1: "x", 2: "2", 3: "3", 6: "x"}, metrics=["cer"], adapter=adapter)
    return [base, learned]


def test_the_csv_has_every_row_of_either_run_in_order_with_the_datasets_columns(
    api: APIClient, runs: list[EvaluationRun]
) -> None:
    text = export(api, runs)
    assert text.splitlines()[0].split(",")[:4] == ["index", "prompt", "answer", "note"]
    lines = lines_of(text)
    assert [line["index"] for line in lines] == ["0", "1", "2", "3", "4", "6"]
    assert [line["transition"] for line in lines] == ["both_right", "broken", "fixed", "", "", ""]
    assert [line["seen_in_training"] for line in lines] == ["True", "True", "False", "", "", ""]
    assert [line["prompt"] for line in lines] == [f"What is {n}?" for n in (0, 1, 2, 3, 4, 6)]
    broken, alone = lines[1], lines[4]
    assert (broken["prediction_baseline"], broken["prediction_candidate"]) == ("1", "x")
    assert (broken["exact_match_baseline"], broken["exact_match_candidate"]) == ("True", "False")
    assert (broken["token_f1_baseline"], broken["cer_candidate"]) == ("1.0", "1.0")
    assert (alone["prediction_baseline"], alone["prediction_candidate"]) == ("4", "")
    assert lines[3]["skipped_reason_baseline"] == "no image"


def test_only_rows_of_one_transition(api: APIClient, runs: list[EvaluationRun]) -> None:
    assert [line["index"] for line in lines_of(export(api, runs, transition="fixed"))] == ["2"]
    assert lines_of(export(api, runs, transition="both_wrong")) == []


def test_the_json_is_exact_and_carries_the_comparison(api: APIClient, runs: list[EvaluationRun]) -> None:
    document = json.loads(export(api, runs, format="json"))
    assert document["comparison"]["parts"]["all"] == {"fixed": 1, "broken": 1, "both_right": 1, "both_wrong": 0}
    assert document["comparison"]["verdict"] == "cannot_tell"
    assert document["columns"] == ["prompt", "answer", "note"]
    assert document["result_columns"]["models"]["baseline"]["prediction"] == "prediction_baseline"
    assert [row["index"] for row in document["rows"]] == [0, 1, 2, 3, 4, 6]
    assert document["rows"][1]["exact_match_baseline"] is True
    assert document["rows"][3]["transition"] is None


def test_formulas_are_escaped_in_csv_unless_raw_and_never_in_json(
    api: APIClient, make_dataset: Callable[..., Dataset], make_run: MakeRun
) -> None:
    dataset = make_dataset([("=1+1", "@x", "+note")])
    runs = [make_run(dataset, ["=cmd()"]), make_run(dataset, ["-2+3"])]
    (line,) = lines_of(export(api, runs))
    assert (line["prompt"], line["prediction_baseline"], line["prediction_candidate"]) == ("'=1+1", "'=cmd()", "'-2+3")
    (line,) = lines_of(export(api, runs, raw="1"))
    assert (line["prompt"], line["prediction_baseline"], line["note"]) == ("=1+1", "=cmd()", "+note")
    (row,) = json.loads(export(api, runs, format="json"))["rows"]
    assert row["prediction_candidate"] == "-2+3"


def test_columns_of_the_dataset_keep_their_names_and_ours_give_way(
    api: APIClient, make_dataset: Callable[..., Dataset], make_run: MakeRun
) -> None:
    columns = ("index", "transition", "prediction_baseline")
    dataset = make_dataset([("a", "b", "mine")], columns=columns)
    (line,) = lines_of(export(api, [make_run(dataset, ["b"]), make_run(dataset, ["b"])]))
    assert (line["index"], line["transition"], line["prediction_baseline"]) == ("a", "b", "mine")
    assert (line["index_eval"], line["transition_eval"], line["prediction_baseline_eval"]) == ("0", "both_right", "b")


def test_labels_stand_beside_the_answers_in_classification(
    api: APIClient, make_dataset: Callable[..., Dataset], make_run: MakeRun
) -> None:
    dataset = make_dataset([(f"{n}?", "yes" if n else "no", "") for n in range(2)])
    runs = [make_run(dataset, ["Yes.", "perhaps"], classification=True) for _ in range(2)]
    assert [line["label_baseline"] for line in lines_of(export(api, runs))] == ["yes", ""]


def test_the_answer_is_a_file_that_no_browser_guesses_about(api: APIClient, runs: list[EvaluationRun]) -> None:
    for name, kind, placed in (
        ("csv", "text/csv; charset=utf-8", "attachment"),
        ("json", "application/json", "attachment"),
        ("html", "text/html; charset=utf-8", "inline"),
    ):
        query = f"baseline_run_id={runs[0].pk}&candidate_run_id={runs[1].pk}&format={name}"
        response = api.get(f"/api/evaluation/compare/export?{query}")
        assert response["Content-Type"] == kind
        assert response["X-Content-Type-Options"] == "nosniff"
        expected = f'{placed}; filename="comparison_{runs[0].pk}_{runs[1].pk}.{name}"'
        assert response["Content-Disposition"] == expected


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("baseline_run_id=1", "candidate_run_id"),
        ("baseline_run_id=1&candidate_run_id=2&format=xlsx", "format"),
        ("baseline_run_id=1&candidate_run_id=2&raw=maybe", "raw"),
        ("baseline_run_id=1&candidate_run_id=2&max_rows=0", "max_rows"),
        ("baseline_run_id=1&candidate_run_id=2&max_rows=100000", "max_rows"),
        ("baseline_run_id=1&candidate_run_id=2&confidence_level=nan", "confidence_level"),
        ("baseline_run_id=x&candidate_run_id=2", "baseline_run_id"),
        ("baseline_run_id=1&candidate_run_ids=2", "candidate_run_ids"),
    ],
)
def test_a_wrong_query_is_refused_by_field(api: APIClient, query: str, field: str) -> None:
    response = api.get(f"/api/evaluation/compare/export?{query}")
    assert (response.status_code, response["Content-Type"]) == (400, "application/problem+json")
    assert field in {error["field"] for error in response.json()["errors"]}


def test_runs_that_cannot_be_compared_are_refused_before_a_byte_is_sent(
    api: APIClient, numbers: Any, make_run: MakeRun
) -> None:
    one, other = make_run(numbers(3), ["x"] * 3), make_run(numbers(4, name="b.csv"), ["x"] * 4)
    query = f"baseline_run_id={one.pk}&candidate_run_id={other.pk}&format=csv"
    response = api.get(f"/api/evaluation/compare/export?{query}")
    assert (response.status_code, response.json()["code"]) == (409, "datasets_differ")


def test_the_options_of_the_comparison_reach_the_export(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(20)
    runs = [make_run(dataset, answers_right_in(range(n), 20)) for n in (3, 12)]
    query = {"format": "json", "confidence_level": "0.9", "metric": "token_f1", "rows": "all", "seed": "7"}
    facts = json.loads(export(api, runs, **query))["comparison"]
    assert (facts["confidence_level"], facts["metric"], facts["seed"]) == (0.9, "token_f1", 7)
