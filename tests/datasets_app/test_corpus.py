"""The nasty files of tests/assets/tables through the upload route, each with its expected answer; two are made here."""

from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from tests.datasets_app.conftest import SMALL, Upload

TABLES = Path(__file__).resolve().parents[1] / "assets" / "tables"

# name: (format, encoding, delimiter, columns, rows)
TAKEN: dict[str, tuple[str, str, str, list[str], list[list[str]]]] = {
    "bom.csv": ("csv", "utf-8-sig", ",", ["prompt", "response"], [["What is shown?", "A cat"]]),
    "utf16_le.csv": ("csv", "utf-16", ",", ["prompt", "response"], [["Was ist größer?", "Das 図書館"]]),
    "utf16_be.csv": ("csv", "utf-16", ",", ["prompt", "response"], [["Was ist größer?", "Das 図書館"]]),
    "cp1252.csv": (
        "csv",
        "cp1252",
        ",",
        ["prompt", "response"],
        [
            ["Wie heißt die größte Stadt über dem Fluß?", "Köln \u2013 natürlich für Müller"],
            ["Was kostet das Frühstück im Café?", "„Zwölf €“"],
        ],
    ),
    "semicolon.csv": (
        "csv",
        "utf-8",
        ";",
        ["prompt", "response", "score"],
        [["One; two, three", "1,5", "0,75"], ["Hello, my friend", "Hi, you", "1,0"]],
    ),
    "tab.tsv": ("tsv", "utf-8", "\t", ["prompt", "response"], [["Hello, world", "a\tb"]]),
    "pipe.csv": ("csv", "utf-8", "|", ["prompt", "response"], [["Hello, world", "a;b"]]),
    "quotes.csv": (
        "csv",
        "utf-8",
        ",",
        ["prompt", "response"],
        [['He said "yes"', '"quoted"'], ["5'10 tall", ""], ["", 'a "b" c']],
    ),
    "newlines_in_cells.csv": (
        "csv",
        "utf-8",
        ",",
        ["prompt", "response"],
        [["two\nlines", "two\r\nlines"], ["old\rmac", "\r\n"], ["ends with a break\n", "x"]],
    ),
    "blank_lines.csv": ("csv", "utf-8", ",", ["prompt", "response"], [["a", "b"], ["c", "d"]]),
    "messy.csv": (
        "csv",
        "utf-8",
        ",",
        ["id", "prompt", "response", " note ", "image"],
        [
            ["007", "What is 1.0?", "1.0", "NA", ""],
            ["1.0", "null", "True", "  leading", "https://example.org/a.png"],
            ["-0", "NaN", "False", "trailing  ", "https://example.org/b.png?x=1,2"],
            ["1e5", "two\r\nlines", "one\nline", "\ttab", "data:image/png;base64,iVBORw0KGgo="],
            [
                "",
                "emoji \U0001f469\u200d\U0001f469\u200d\U0001f467 and \u00e9 vs e\u0301",
                "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
                "\u05e9\u05dc\u05d5\u05dd, \u05e2\u05d5\u05dc\u05dd",
                "",
            ],
            ["00", "=1+1", "@SUM(A1:A2)", "-cmd|calc", "+49 151"],
            ["None", '"quoted" and, comma', "<|im_end|>", " ", "\u200b\ufeff"],
            ["inf", "a;b|c\td", "2026-02-30", "\u2028\x0b\x7f", "\xa0"],
        ],
    ),
    "rows.jsonl": (
        "jsonl",
        "utf-8",
        "",
        ["prompt", "response", "score"],
        [["007", " NA \r\n", "1.0"], ["图 🙂", "", "1e5"]],
    ),
    "rows.parquet": (
        "parquet",
        "",
        "",
        ["prompt", "response"],
        [["007", "1.0"], [" NA ", ""], ["two\r\nlines", "é🙂"]],
    ),
}

# name: (status, code, row, column); rows are counted from 1 behind the header.
REFUSED: dict[str, tuple[int, str, int | None, str | None]] = {
    "empty.csv": (400, "empty_file", None, None),
    "header_only.csv": (400, "no_rows", None, None),
    "duplicate_header.csv": (400, "duplicate_column_name", None, "prompt"),
    "blank_header.csv": (400, "blank_column_name", None, ""),
    "ragged_short.csv": (400, "ragged_row", 3, "image"),
    "ragged_long.csv": (400, "ragged_row", 2, "response"),
    "unclosed_quote.csv": (400, "unclosed_quote", 2, "response"),
    "stray_quote.csv": (400, "stray_quote", 2, "prompt"),
    "nul.csv": (400, "nul_character", 3, "prompt"),
    "undecodable.csv": (400, "undecodable", 2, "response"),
    "utf16_cut.csv": (400, "undecodable", 2, "response"),
    "nested.jsonl": (400, "nested_value", 2, "response"),
    "image_bytes.parquet": (400, "unsupported_column_type", None, "image"),
    "gzip.csv": (415, "unsupported_file_type", None, None),
    "xlsx.csv": (415, "unsupported_file_type", None, None),
    "png.csv": (415, "unsupported_file_type", None, None),
}


def preview(client: APIClient, page_size: int = 500) -> Any:
    body = {"page": 1, "page_size": page_size}
    return client.post("/api/datasets/preview", body, format="json").json()["rows"]


def test_every_file_of_the_corpus_has_its_expected_answer() -> None:
    files = {path.name for path in TABLES.iterdir()} - {"README.md", ".gitattributes"}
    assert files == TAKEN.keys() | REFUSED.keys()


def test_git_leaves_every_byte_of_the_corpus_alone() -> None:
    assert "* -text" in (TABLES / ".gitattributes").read_text().splitlines()
    assert b"\r\n" in (TABLES / "messy.csv").read_bytes()


@pytest.mark.parametrize("name", TAKEN)
def test_a_legal_file_is_taken_and_every_cell_comes_back(client: APIClient, upload: Upload, name: str) -> None:
    answer = upload((TABLES / name).read_bytes(), name)
    assert answer.status_code == 200, answer.json()
    body = answer.json()
    found = preview(client)
    told = (body["format"], body["encoding"], body["delimiter"], body["columns"], [list(row.values()) for row in found])
    assert told == TAKEN[name]
    assert body["num_rows"] == len(found)
    assert all(list(row) == body["columns"] for row in found)
    assert body["sample_rows"] == found[:5]


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_file_is_refused_at_its_place_and_nothing_is_stored(
    upload: Upload, name: str, own_data_dir: Path
) -> None:
    before = upload(SMALL).json()
    answer = upload((TABLES / name).read_bytes(), name)
    body = answer.json()
    place = (body["errors"] or [{}])[0]
    assert (answer.status_code, body["code"], place.get("row"), place.get("column")) == REFUSED[name]
    assert answer["Content-Type"] == "application/problem+json"
    assert body["hint"]
    if place.get("row"):
        assert f"row {place['row']}" in body["detail"]
        assert repr(place["column"]) in body["detail"]
    assert list(Dataset.objects.values_list("pk", flat=True)) == [before["dataset_id"]]
    assert [path.name for path in (own_data_dir / "datasets").iterdir()] == [f"{before['sha256']}.parquet"]


def test_all_places_of_a_repeated_and_of_a_blank_name_are_told(upload: Upload) -> None:
    repeated = upload((TABLES / "duplicate_header.csv").read_bytes()).json()["errors"]
    assert [error["message"] for error in repeated] == [
        "the name 'prompt' stands at columns [1, 4]",
        "the name 'image' stands at columns [3, 5]",
    ]
    blank = upload((TABLES / "blank_header.csv").read_bytes()).json()["errors"]
    assert [error["message"] for error in blank] == ["column 2 has no name", "column 4 has no name"]


def test_a_cell_of_five_megabytes_comes_back_whole(client: APIClient, upload: Upload) -> None:
    cell = 'x\r\n"é' * (5 * 1024 * 1024 // 6)
    quoted = cell.replace('"', '""')
    assert upload(f'prompt,response\n"{quoted}",small\nb,c\n'.encode()).status_code == 200
    rows = preview(client)
    assert rows[0]["prompt"] == cell
    assert rows[1] == {"prompt": "b", "response": "c"}


@pytest.mark.parametrize("rows", [1, 300])
def test_ten_thousand_columns_come_back_in_order(client: APIClient, upload: Upload, rows: int) -> None:
    names = [f"column {number}" for number in range(10_000)]
    lines = [",".join(names), *(",".join(f"{row}/{number}" for number in range(10_000)) for row in range(rows))]
    body = upload("\n".join(lines).encode()).json()
    assert (body["num_columns"], body["num_rows"]) == (10_000, rows)
    [row] = client.post("/api/datasets/preview", {"page": rows, "page_size": 1}, format="json").json()["rows"]
    assert list(row) == names
    assert [row[names[0]], row[names[9_999]]] == [f"{rows - 1}/0", f"{rows - 1}/9999"]


def test_more_columns_than_are_taken_are_refused(upload: Upload) -> None:
    line = ",".join(f"c{number}" for number in range(10_001))
    answer = upload(f"{line}\n{line}\n".encode())
    assert (answer.status_code, answer.json()["code"]) == (400, "too_many_columns")
