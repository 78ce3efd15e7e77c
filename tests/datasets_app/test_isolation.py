"""Ingestion in a child process: whatever happens to the child, the server answers and the current dataset stays."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from datasets_app.ingestion import isolation, table
from datasets_app.models import Dataset
from tests.datasets_app.conftest import SMALL, Upload


@pytest.fixture(autouse=True)
def always_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "IN_PROCESS_BYTES", 0)


def child_that(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program in the place of Python: the narrowest spot at which a child can misbehave."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def test_a_child_reads_what_the_server_would_have_read(upload: Upload) -> None:
    body = upload('prompt;response\n"ä\r\nb";007\n'.encode("cp1252"), "tä\tble.csv").json()
    assert (body["encoding"], body["delimiter"], body["num_rows"]) == ("cp1252", ";", 1)
    assert body["sample_rows"] == [{"prompt": "ä\r\nb", "response": "007"}]


def test_a_childs_refusal_arrives_with_its_place(upload: Upload) -> None:
    answer = upload(b"prompt,response\na,b\nc\n")
    assert (answer.status_code, answer.json()["code"]) == (400, "ragged_row")
    assert [(error["row"], error["column"]) for error in answer.json()["errors"]] == [(2, "response")]
    assert "double quotes" in answer.json()["hint"]


def test_a_childs_unsupported_file_is_415(upload: Upload) -> None:
    answer = upload(SMALL, "data.parquet")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_file_type")


def test_a_child_that_crashes_is_a_refusal_and_keeps_the_current_dataset(
    upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = upload(SMALL).json()
    child_that(tmp_path, monkeypatch, "kill -SEGV $$")
    answer = upload(b"a,b\n1,2\n")
    assert (answer.status_code, answer.json()["code"]) == (400, "unreadable_file")
    assert Dataset.objects.get().pk == before["dataset_id"]


def test_a_child_that_fails_is_our_fault_and_keeps_the_current_dataset(
    upload: Upload, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = upload(SMALL).json()
    child_that(tmp_path, monkeypatch, "exit 1")
    client.raise_request_exception = False
    answer = upload(b"a,b\n1,2\n")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert Dataset.objects.get().pk == before["dataset_id"]


def test_a_disk_that_is_full_in_the_child_is_503(
    upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that(tmp_path, monkeypatch, """echo '{"errno": 28}'""")
    answer = upload(SMALL)
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")


def test_a_table_stops_before_the_disk_is_full(upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "IN_PROCESS_BYTES", 2**20)
    monkeypatch.setattr(table, "FREE_RESERVE", 2**60)
    answer = upload(SMALL)
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert not Dataset.objects.exists()


def child_with(folder: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """The real child with a smaller limit."""
    code = f"import sys; from datasets_app.ingestion import child, parquet_records; {change}; child.main(*sys.argv[1:])"
    child_that(folder, monkeypatch, f'exec {sys.executable} -c \'{code}\' "$3" "$4"')


def test_a_file_that_takes_too_much_memory_is_413(
    upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_data_dir: Path
) -> None:
    child_with(tmp_path, monkeypatch, "child.MAX_MEMORY = 200_000_000")
    assert upload(SMALL).status_code == 200
    answer = upload(b"prompt,response\n" + b"x" * 60_000_000 + b",y\n")
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "memory" in answer.json()["detail"]
    assert Dataset.objects.count() == len(list((own_data_dir / "datasets").iterdir())) == 1


REPEATED = parquet({"prompt": ["x" * 1_000_000] * 100, "response": [str(number) for number in range(100)]})


def test_a_text_that_a_parquet_file_repeats_is_written_in_small_groups(upload: Upload) -> None:
    assert len(REPEATED) < 2_000_000
    body = upload(REPEATED, "data.parquet").json()
    assert (body["num_rows"], body["sample_rows"][0]["prompt"]) == (100, "x" * 1_000_000)
    path = Dataset.objects.get().table_path
    assert len(table.layout_of(path).starts) >= 100 * 1_000_000 // table.GROUP_CHARS
    [last] = table.read_rows(path, 99, 1)
    assert last["response"] == "99"


def test_a_parquet_file_that_unfolds_without_end_is_413(
    upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_data_dir: Path
) -> None:
    child_with(tmp_path, monkeypatch, "parquet_records.MAX_TEXT_BYTES = 20_000_000")
    answer = upload(REPEATED, "data.parquet")
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "text" in answer.json()["detail"]
    assert list((own_data_dir / "datasets").iterdir()) == []


def damaged_text() -> bytes:
    """The bytes of "grün" within a Parquet file made no UTF-8."""
    content = parquet({"prompt": ["a", "gr\u00fcn"], "response": ["b", "c"]}, compression="none", use_dictionary=False)
    assert content.count("gr\u00fcn".encode()) >= 1
    return content.replace("gr\u00fcn".encode(), b"gr\xff\xffn")


@pytest.mark.parametrize(
    ("content", "code", "row", "column"),
    [
        (damaged_text(), "undecodable", 2, "prompt"),
        (parquet({"prompt": ["a", "b"], "response": ["c", "d\0"]}), "nul_character", 2, "response"),
        (parquet({"prompt": ["a", "a", "a\0"], "response": ["c"] * 3}), "nul_character", 3, "prompt"),
        (parquet({"prompt": ["a"], "response": [{"b": 1}]}), "unsupported_column_type", None, "response"),
    ],
)
def test_parquet_cells_that_are_no_text_are_refused_at_their_place(
    upload: Upload, content: bytes, code: str, row: int | None, column: str
) -> None:
    answer = upload(content, "data.parquet")
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    [place] = answer.json()["errors"]
    assert (place.get("row"), place["column"]) == (row, column)
