"""Exports stay aligned with the dataset, keep its columns, and are streamed."""

import csv
import io
import json
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app.comparison.joined import JoinedRows
from evaluation_app.export_rows import ExportBrokenOffError, iter_values
from evaluation_app.exports import csv_chunks, csv_text
from evaluation_app.models import EvaluationRun, Sample
from ftproject.core.formula_escape import unescape_formula
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
Work = Callable[..., list[EvaluationRun]]


def start(api: APIClient, **body: Any) -> int:
    return int(api.post("/api/evaluation/run", body, format="json").json()["run_id"])


def export(api: APIClient, run: EvaluationRun, query: str = "format=csv") -> str:
    response = api.get(f"/api/evaluation/export/{run.pk}?{query}")
    assert response.status_code == 200, response.content
    assert response.streaming
    return b"".join(response.streaming_content).decode()  # type: ignore[attr-defined]


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("query", ["format=xlsx", "format=CSV", "raw=maybe", "page=1"])
def test_an_unknown_format_or_option_is_refused(api: APIClient, dataset: Dataset, work: Work, query: str) -> None:
    run_id = start(api)
    work()
    response = api.get(f"/api/evaluation/export/{run_id}?{query}")
    assert (response.status_code, response.json()["errors"][0]["field"]) == (400, query.split("=")[0])


@pytest.mark.parametrize("status", ["queued", "evaluating", "stopping", "error"])
def test_a_run_that_is_not_completed_is_not_exported(api: APIClient, dataset: Dataset, status: str) -> None:
    run_id = start(api)
    EvaluationRun.objects.update(status=status)
    response = api.get(f"/api/evaluation/export/{run_id}?format=csv")
    assert (response.status_code, response.json()["code"]) == (409, "run_not_finished")
    assert f"/api/evaluation/runs/{run_id}/samples" in response.json()["hint"]


def test_the_export_has_one_line_per_row_in_order_with_the_datasets_own_columns_first(
    api: APIClient, adapter: Adapter, work: Work
) -> None:
    start(api, adapter_path=adapter.name)
    (run,) = work()
    lines = lines_of(export(api, run))
    assert list(lines[0])[:3] == ["prompt", "answer", "note"]
    assert [line["prompt"] for line in lines] == [f"What is {n}?" for n in range(10)]
    assert [line["index"] for line in lines] == [str(n) for n in range(10)]
    assert [line["prediction"] for line in lines] == [f"number {n}" if n != 3 else "" for n in range(10)]
    assert [line["skipped"] for line in lines] == ["True" if n == 3 else "False" for n in range(10)]
    assert "note" in lines[3]["skipped_reason"]
    assert (lines[3]["exact_match"], lines[3]["token_f1"]) == ("", "")
    assert (lines[0]["exact_match"], lines[0]["seen_in_training"], lines[9]["seen_in_training"]) == (
        "True",
        "True",
        "False",
    )


def test_the_answer_is_an_attachment_that_no_browser_guesses_about(
    api: APIClient, dataset: Dataset, work: Work
) -> None:
    run_id = start(api)
    work()
    kinds = {
        "csv": "text/csv; charset=utf-8",
        "json": "application/json",
        "jsonl": "application/x-ndjson; charset=utf-8",
    }
    for name, kind in kinds.items():
        response = api.get(f"/api/evaluation/export/{run_id}?format={name}")
        assert response["Content-Disposition"] == f'attachment; filename="evaluation_{run_id}_base.{name}"'
        assert response["X-Content-Type-Options"] == "nosniff"
        assert response["Content-Type"] == kind


def test_without_a_format_it_is_csv(api: APIClient, dataset: Dataset, work: Work) -> None:
    start(api)
    (run,) = work()
    assert export(api, run, "") == export(api, run, "format=csv")


def test_a_part_of_the_rows_is_exported_as_that_part(api: APIClient, adapter: Adapter, work: Work) -> None:
    start(api, adapter_path=adapter.name, rows="heldout")
    (run,) = work()
    assert [line["index"] for line in lines_of(export(api, run))] == ["7", "8", "9"]


def test_a_result_column_whose_name_is_taken_gets_a_suffix_and_the_datasets_keeps_its_own(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset(
        [("ask", "truth", "mine", "also mine")], columns=["question", "answer", "prediction", "prediction_eval"]
    )
    start(api)
    (run,) = work()
    (line,) = lines_of(export(api, run))
    assert (line["prediction"], line["prediction_eval"]) == ("mine", "also mine")
    assert line["prediction_eval_eval"] == run.samples.get().prediction
    assert (line["prompt"], line["ground_truth"]) == ("ask", "truth")


def test_an_unrelated_column_called_prompt_is_not_taken_for_the_prompt(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([("ask", "truth", "unrelated")], columns=["question", "answer", "prompt"])
    start(api)
    (run,) = work()
    (line,) = lines_of(export(api, run))
    assert (line["prompt"], line["prompt_eval"]) == ("unrelated", "ask")


def test_formulas_are_escaped_unless_raw_is_asked_for(
    api: APIClient, make_dataset: Callable[..., Dataset], make_adapter: Callable[..., Adapter], work: Work
) -> None:
    dataset = make_dataset([("=1+1", "@cmd", "-5.2"), ("'=1", "\tx", "plain")])
    start(api, adapter_path=make_adapter(dataset, trained=[0], heldout=[1]).name)
    (run,) = work()
    safe, raw = lines_of(export(api, run)), lines_of(export(api, run, "format=csv&raw=1"))
    assert [safe[0][name] for name in ("prompt", "answer", "note", "prediction")] == ["'=1+1", "'@cmd", "-5.2", "'@cmd"]
    assert [raw[0][name] for name in ("prompt", "answer", "note", "prediction")] == ["=1+1", "@cmd", "-5.2", "@cmd"]
    assert [safe[1][name] for name in ("prompt", "answer")] == ["''=1", "'\tx"]
    assert json.loads(export(api, run, "format=json"))["samples"][0]["prompt"] == "=1+1"


def test_json_holds_every_value_exactly_and_says_what_the_run_was(api: APIClient, adapter: Adapter, work: Work) -> None:
    start(api, adapter_path=adapter.name)
    (run,) = work()
    data = json.loads(export(api, run, "format=json"))
    assert (data["run"]["id"], data["run"]["model_type"]) == (run.pk, "finetuned")
    assert data["columns"] == ["prompt", "answer", "note"]
    assert len(data["samples"]) == 10
    assert data["samples"][3] | {"skipped": True, "exact_match": None, "prediction": ""} == data["samples"][3]
    assert data["samples"][4]["token_f1"] == 1.0


def test_an_export_of_no_rows_is_a_header_and_an_empty_list(api: APIClient, dataset: Dataset, work: Work) -> None:
    start(api)
    (run,) = work()
    Sample.objects.all().delete()
    EvaluationRun.objects.update(num_samples=0)
    assert export(api, run).count("\r\n") == 1
    assert json.loads(export(api, run, "format=json"))["samples"] == []
    assert export(api, run, "format=jsonl") == ""


def test_a_run_that_is_deleted_while_it_is_exported_breaks_the_export_off(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([("ask", "x" * 3000, "n") for _ in range(1500)])
    start(api)
    (run,) = work()
    response = api.get(f"/api/evaluation/export/{run.pk}?format=csv")
    stream = iter(response.streaming_content)  # type: ignore[attr-defined]
    assert len(next(stream)) > 60_000
    assert api.delete(f"/api/evaluation/runs/{run.pk}").status_code == 200
    assert api.delete(f"/api/datasets/{run.dataset_id}").status_code == 200
    with pytest.raises(ExportBrokenOffError, match="of 1500 samples"):
        b"".join(stream)


def test_a_joined_table_is_broken_off_just_the_same(api: APIClient, dataset: Dataset, work: Work) -> None:
    start(api)
    start(api)
    one, other = work()
    rows = JoinedRows({"one": one, "other": other})
    Sample.objects.filter(run=other, index__gt=4).delete()
    with pytest.raises(ExportBrokenOffError, match="5 of 10"):
        list(rows)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_without_the_datasets_file_the_refusal_comes_before_any_row(
    api: APIClient, dataset: Dataset, work: Work, kind: str
) -> None:
    run_id = start(api)
    work()
    dataset.table_path.unlink()
    response = api.get(f"/api/evaluation/export/{run_id}?format={kind}")
    assert (response.status_code, response.json()["code"]) == (409, "dataset_file_missing")
    assert not response.streaming


def test_the_named_metrics_of_a_run_are_columns_too(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([("ask", "12", "0.5"), ("ask", "no number", "0.5")], columns=["prompt", "answer", "cer"])
    start(api, metrics=["cer", {"name": "numeric", "tolerance": 0.01}])
    (run,) = work()
    first, second = lines_of(export(api, run))
    stored = dict(run.samples.values_list("index", "scores"))
    assert list(first)[-3:] == ["reused", "cer_eval", "numeric"]
    assert (first["cer"], first["cer_eval"]) == ("0.5", str(stored[0]["cer"]))
    assert (first["numeric"], second["numeric"]) == (str(stored[0]["numeric"]), "")
    told = json.loads(export(api, run, "format=json"))
    assert told["result_columns"]["cer"] == "cer_eval"
    assert [sample["numeric"] for sample in told["samples"]] == [stored[0]["numeric"], None]


def test_json_lines_are_the_samples_of_the_json_export(api: APIClient, adapter: Adapter, work: Work) -> None:
    start(api, adapter_path=adapter.name)
    (run,) = work()
    lines = export(api, run, "format=jsonl").splitlines()
    assert [json.loads(line) for line in lines] == json.loads(export(api, run, "format=json"))["samples"]


@pytest.mark.parametrize("limit", [1, 3])
def test_only_the_rows_that_were_asked_for_are_exported(
    api: APIClient, dataset: Dataset, work: Work, limit: int
) -> None:
    start(api, sample_limit=limit)
    (run,) = work()
    assert [line["index"] for line in lines_of(export(api, run))] == [str(n) for n in range(limit)]


def test_long_prompts_are_read_a_few_at_a_time(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([("ask", "truth", "n")] * 2000)
    start(api, sample_limit=1)
    (run,) = work()
    Sample.objects.all().delete()
    rows = (
        Sample(run=run, index=n, prompt="p" * (100_000 if n >= 1000 else 10), ground_truth="t") for n in range(1400)
    )
    Sample.objects.bulk_create(rows, batch_size=100)
    with CaptureQueriesContext(connection) as queries:
        sizes = [len(values[1]) for values in iter_values(run, ["prompt"])]
    assert (len(sizes), sum(sizes)) == (1400, 1000 * 10 + 400 * 100_000)
    assert 10 < len(queries) < 40  # a page of 20 long prompts, not of 5,000


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cells.filter(str.strip), cells, cells), min_size=1, max_size=8))
def test_every_dataset_comes_back_cell_by_cell(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work, rows: Sequence[tuple[str, str, str]]
) -> None:
    EvaluationRun.objects.all().delete()
    make_dataset([["one", "two", "three"], *rows], mandatory_columns=["note"])
    start(api)
    (run,) = work()
    lines = lines_of(export(api, run))
    shown = [tuple(unescape_formula(line[name]) for name in ("prompt", "answer", "note")) for line in lines]
    assert shown == [("one", "two", "three"), *rows]
    assert [line["skipped"] == "True" for line in lines][1:] == [not note.strip() for _, _, note in rows]


def joined_lines(runs: dict[str, EvaluationRun]) -> list[dict[str, str]]:
    rows = JoinedRows(runs)
    return lines_of("".join(csv_text(rows.header(), rows, raw=False)))


def test_models_stand_side_by_side_in_a_joined_table(
    api: APIClient, adapter: Adapter, make_adapter: Callable[..., Adapter], dataset: Dataset, work: Work
) -> None:
    make_adapter(dataset, name="adapter_2", trained=[0], heldout=[3, 9])
    start(api, split_adapter=adapter.name, rows="heldout")
    start(api, adapter_path="adapter_2", rows="heldout")
    base, tuned = work()
    lines = joined_lines({"base": base, "adapter_2": tuned})
    assert [line["index"] for line in lines] == ["3", "7", "8", "9"]
    assert list(lines[0])[:4] == ["index", "prompt", "answer", "note"]
    assert [line["prediction_adapter_2"] for line in lines] == ["", "", "", "number 9"]
    assert [line["exact_match_base"] for line in lines] == ["", "False", "False", "False"]
    assert [line["exact_match_adapter_2"] for line in lines] == ["", "", "", "True"]
    assert "note" in lines[0]["skipped_reason_adapter_2"]


def test_memory_stays_bounded_however_many_rows_there_are(
    api: APIClient, make_dataset: Callable[..., Dataset], work: Work
) -> None:
    make_dataset([(f"row {n}", "x" * 2000, "n") for n in range(12_000)])
    start(api, sample_limit=1)
    (run,) = work()
    rows = (Sample(run=run, index=n, prompt="p" * 200, ground_truth="t") for n in range(1, 12_000))
    Sample.objects.bulk_create(rows, batch_size=500)
    run.num_samples = 12_000
    tracemalloc.start()
    size = sum(len(chunk) for chunk in csv_chunks(run))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 24_000_000
    assert peak < 14_000_000  # one row group of the table: 8 MB of text
