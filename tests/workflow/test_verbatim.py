"""Generated tables through the whole product and back: no cell changes, no row moves, whatever the upload's format."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from evaluation_app.models import EvaluationRun
from evaluation_app.runner import execute_evaluation
from ftproject.core.jobs import claim_job
from ftproject.engine.conversations import neutralise_special_tokens

pytestmark = pytest.mark.django_db

NASTY_CELLS = [
    "", " ", "007", "1.0", "-0", "1e5", "NA", "null", "None", "nan", "True", " leading", "trailing ", "\ttab", "=1+1",
    "+49", "-x", "@SUM(A1)", "'quoted", '"', '""', ",", ";", "a|b", "two\nlines", "two\r\nlines", "old\rmac", "\r\n",
    "\u2028", "\x0b\x0c\x1c\x85", "\ufeffmark", "e\u0301 \u00e9", "\u05e9\u05dc\u05d5\u05dd", "🙂", "<|im_end|>",
    "\\n", "{}",
]  # fmt: skip
NASTY_NAMES = [
    "prompt", "response", "index", "prediction", "label", "a,b", 'say "hi"', "two\nlines", " padded ", "=1+1", "007",
    "größe", "{x}", "\ttab",
]  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
CELLS = st.one_of(st.sampled_from(NASTY_CELLS), TEXT, st.builds("".join, st.lists(st.sampled_from(NASTY_CELLS))))
# A byte order mark at the very start of a file is none of its text.
NAMES = st.one_of(st.sampled_from(NASTY_NAMES), TEXT).filter(lambda name: name.strip() and name[0] != "\ufeff")

Rows = list[list[str]]
Table = tuple[list[str], Rows]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    columns = draw(st.lists(NAMES, min_size=2, max_size=5, unique_by=str.strip))
    rows = st.lists(CELLS, min_size=len(columns), max_size=len(columns))
    return columns, draw(st.lists(rows, min_size=1, max_size=6))


def as_csv(table: Table, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([table[0], *table[1]])
    return text.getvalue().encode()


def as_tsv(table: Table) -> bytes:
    return as_csv(table, "\t")


def as_jsonl(table: Table) -> bytes:
    lines = (
        json.dumps(dict(zip(table[0], row, strict=True)), ensure_ascii=bool(n % 2)) for n, row in enumerate(table[1])
    )
    return "\n".join(lines).encode()


def as_parquet(table: Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(cells, pa.string()) for cells in zip(*table[1], strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, names=table[0]), sink)
    return sink.getvalue()


@pytest.fixture
def api(data_dir: Path, settings: Any) -> APIClient:
    settings.BACKEND = "fake"
    return APIClient(HTTP_HOST="localhost")


def upload(api: APIClient, content: bytes, name: str) -> dict[str, Any]:
    body = {"file": SimpleUploadedFile(name, content)}
    answer = api.post("/api/datasets/upload", body, format="multipart")
    assert answer.status_code == 200, answer.json()
    facts: dict[str, Any] = answer.json()
    return facts


def preview(api: APIClient) -> Table:
    rows = api.post("/api/datasets/preview", {"page": 1, "page_size": 500}, format="json").json()["rows"]
    return list(rows[0]), [list(row.values()) for row in rows]


def map_columns(api: APIClient, prompt: str, response: str) -> None:
    body = {"prompt_column": prompt, "response_column": response}
    assert api.post("/api/datasets/mapping", body, format="json").status_code == 200


def conversation_texts(api: APIClient) -> Rows:
    """Prompt and response of each row, as the model would see them."""
    body = api.get("/api/datasets/preview/conversations?start=0&count=500").json()
    found = [conversation["messages"] for conversation in body["conversations"]]
    return [[message["content"][-1]["text"] for message in messages] for messages in found]


def evaluate(api: APIClient) -> int:
    answer = api.post("/api/evaluation/run", {}, format="json")
    assert answer.status_code == 200, answer.json()
    run = EvaluationRun.objects.get(pk=answer.json()["run_id"])
    assert claim_job(run)
    execute_evaluation(run, lambda: False)
    return run.pk


def export(api: APIClient, run_id: int, query: str) -> bytes:
    answer = api.get(f"/api/evaluation/export/{run_id}?{query}")
    assert answer.status_code == 200
    return b"".join(answer.streaming_content)  # type: ignore[attr-defined]


def survives(api: APIClient, table: Table, content: bytes, name: str) -> None:
    columns, rows = table
    facts = upload(api, content, name)
    assert (facts["columns"], facts["num_rows"]) == (columns, len(rows))
    assert preview(api) == table
    map_columns(api, columns[0], columns[1])
    assert conversation_texts(api) == [[neutralise_special_tokens(cell) for cell in row[:2]] for row in rows]
    run_id = evaluate(api)
    samples = api.get(f"/api/evaluation/runs/{run_id}/samples?page_size=500").json()["samples"]
    assert [[sample["prompt"], sample["ground_truth"]] for sample in samples] == [row[:2] for row in rows]
    exported = export(api, run_id, "format=csv&raw=1")
    lines = list(csv.reader(io.StringIO(exported.decode(), newline="")))
    assert [line[: len(columns)] for line in lines] == [columns, *rows]
    told = json.loads(export(api, run_id, "format=json"))
    assert told["columns"] == columns
    assert [[sample[name] for name in columns] for sample in told["samples"]] == rows
    comes_back(api, table, exported)


def comes_back(api: APIClient, table: Table, exported: bytes) -> None:
    """The export is a dataset again; names that only blanks tell apart cannot be in one header."""
    columns, rows = table
    upload(api, exported, "exported.csv")
    again_columns, again = preview(api)
    assert again_columns[: len(columns)] == columns
    assert [row[: len(columns)] for row in again] == rows


ALL_NASTY: Table = (["prompt", "response", " note "], [[cell, cell, cell] for cell in NASTY_CELLS])


@pytest.mark.parametrize(
    ("write", "name"),
    [(as_csv, "table.csv"), (as_tsv, "table.tsv"), (as_jsonl, "table.jsonl"), (as_parquet, "table.parquet")],
    ids=["csv", "tsv", "jsonl", "parquet"],
)
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(table=ALL_NASTY)
@given(table=tables())
def test_a_table_survives_upload_mapping_evaluation_and_export(
    api: APIClient, write: Callable[[Table], bytes], name: str, table: Table
) -> None:
    survives(api, table, write(table), name)
