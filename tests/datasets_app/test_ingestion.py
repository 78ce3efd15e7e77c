"""Files into tables: cells verbatim, encodings and delimiters found, every malformed file refused at its place."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets_app.ingestion import csv_blocks, csv_records, lines, table
from datasets_app.ingestion.delimiters import detect_delimiter
from datasets_app.ingestion.ingest import TableFacts, ingest_file
from datasets_app.ingestion.survey import survey_file
from ftproject.core.errors import InvalidInputError, UnsupportedFormatError

Rows = list[dict[str, str]]


def take(folder: Path, content: bytes, name: str = "data.csv") -> tuple[TableFacts, Rows]:
    source, target = folder / "upload", folder / "table.parquet"
    source.write_bytes(content)
    facts = ingest_file(source, survey_file(source), name, target)
    return facts, table.read_rows(target, 0, facts.num_rows)


def refusal(folder: Path, content: bytes, name: str = "data.csv") -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        take(folder, content, name)
    return caught.value


@pytest.mark.parametrize(
    "cell",
    [
        "007",
        "1.0",
        "NA",
        "null",
        "None",
        "True",
        "",
        " leading",
        "trailing ",
        "\ttab",
        "1e5",
        "-0",
        "nan",
        "=1+1",
        "é図🙂",
    ],
)
def test_a_cell_comes_back_as_it_was_written(tmp_path: Path, cell: str) -> None:
    _, rows = take(tmp_path, f"prompt,response\n{cell},x\n".encode())
    assert rows == [{"prompt": cell, "response": "x"}]


@pytest.mark.parametrize(
    "cell", ["two\nlines", "two\r\nlines", "old\rmac", 'say "hi"', "a,b", "\n", '"', "\u2028", "\x0b"]
)
def test_a_quoted_cell_comes_back_byte_for_byte(tmp_path: Path, cell: str) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    facts, rows = take(tmp_path, f"prompt,response\r\n{quoted},x\r\n".encode())
    assert rows == [{"prompt": cell, "response": "x"}]
    assert facts.num_rows == 1


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=8),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_whatever_the_csv_module_writes_comes_back(
    tmp_path: Path, rows: list[tuple[str, ...]], delimiter: str, end: str, encoding: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["prompt", "response", "image"])
    writer.writerows(rows)
    facts, found = take(tmp_path, text.getvalue().encode(encoding))
    assert [tuple(row.values()) for row in found] == rows
    assert (facts.delimiter, facts.encoding, facts.num_rows) == (delimiter, encoding, len(rows))


def strictly(path: Path) -> list[tuple[str, ...]]:
    with lines.Lines(path, "utf-8", "strict") as source:
        records = csv_records.CsvRecords(csv_records.CsvForm(path, "utf-8", ","), source)
        return [row for group in records.groups() for row in zip(*group, strict=True)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.text(st.sampled_from('a",\n\r \ufeff'), max_size=30))
def test_what_the_fast_reader_vouches_for_the_strict_reader_reads_alike(tmp_path: Path, body: str) -> None:
    path = tmp_path / "upload"
    path.write_text("p,q\n" + body, encoding="utf-8", newline="")
    try:
        groups = list(csv_blocks.proven_groups(path, ["p", "q"], ","))
    except csv_blocks.UnprovenError:
        return
    fast = [row for group in groups for row in zip(*(column.to_pylist() for column in group), strict=True)]
    assert fast == strictly(path)


@pytest.mark.parametrize("size", [16, 31, 64])
def test_records_across_blocks_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(csv_blocks, "BLOCK", size)
    cells = ["plain", 'say "hi"', "a,b", "two\nlines", "", "x" * 100, "\ufeffmark", "ü\r\n"]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["p", "q"])
    expected = [(first, second) for first in cells for second in cells]
    writer.writerows(expected)
    _, rows = take(tmp_path, text.getvalue().encode())
    assert [tuple(row.values()) for row in rows] == expected


def test_an_ordinary_file_takes_the_fast_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def strict_reader(self: object) -> None:
        raise AssertionError("the strict reader was asked")

    monkeypatch.setattr(csv_records.CsvRecords, "groups", strict_reader)
    facts, _ = take(tmp_path, b'prompt,response\n"a ""b"", c",d\r\n"",e\n\nf,g')
    assert facts.num_rows == 3


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    content = f"prompt{delimiter}response\nHello there{delimiter}Hi\n"
    facts, _ = take(tmp_path, content.encode())
    assert facts.delimiter == delimiter
    assert facts.columns == ["prompt", "response"]
    assert facts.format == ("tsv" if delimiter == "\t" else "csv")


def test_commas_in_the_cells_do_not_hide_a_semicolon(tmp_path: Path) -> None:
    facts, rows = take(tmp_path, b"prompt;response\nHello, my, friend;Hi, you\nOne, two;three\n")
    assert facts.delimiter == ";"
    assert rows[0]["prompt"] == "Hello, my, friend"


def test_a_delimiter_in_the_header_of_another_loses_by_its_records() -> None:
    assert detect_delimiter("a|x,b|y,c\n1,2,3\n4,5,6\n") == ","


def test_a_file_named_tsv_settles_a_tie() -> None:
    tie = "a,b\tc\n1,2\t3\n"
    assert detect_delimiter(tie, prefer="\t") == "\t"
    assert detect_delimiter(tie) == ","


def test_a_single_column_is_a_table(tmp_path: Path) -> None:
    facts, rows = take(tmp_path, b"prompt\nhello\n")
    assert (facts.columns, rows) == (["prompt"], [{"prompt": "hello"}])


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n", b"\n\r\n\n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path, end: bytes) -> None:
    facts, _ = take(tmp_path, b"prompt,response\na,b" + end)
    assert facts.num_rows == 1


@pytest.mark.parametrize(
    ("encoding", "named"), [("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-16"), ("utf-32", "utf-32")]
)
def test_unicode_with_and_without_a_byte_order_mark(tmp_path: Path, encoding: str, named: str) -> None:
    facts, rows = take(tmp_path, "prompt,response\nnaïve 図,ok\n".encode(encoding))
    assert (facts.encoding, facts.columns[0], rows[0]["prompt"]) == (named, "prompt", "naïve 図")


def test_big_endian_utf_16_is_read(tmp_path: Path) -> None:
    facts, rows = take(tmp_path, b"\xfe\xff" + "prompt,response\nGrün,x\n".encode("utf-16-be"))
    assert (facts.encoding, rows[0]["prompt"]) == ("utf-16", "Grün")


GERMAN = "prompt,response\n" + "Wie heißt die größte Stadt über dem Fluß?,Köln natürlich für Müller\n" * 5
RUSSIAN = "prompt,response\n" + "Какой город самый большой в этой стране?,Москва конечно\n" * 5


POLISH = "prompt,response\nZażółć gęślą jaźń,tak\n"
JAPANESE = "prompt,response\n日本語のテキスト,はい\n"
CHINESE = "prompt,response\n今天的天气怎么样请告诉我北京的天气,今天北京是晴天没有风\n" * 3
SHORT = "prompt,response\nA café,yes\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "cp1252"),
        (RUSSIAN, "cp1251"),
        (POLISH, "cp1250"),
        (JAPANESE, "cp932"),
        (CHINESE, "gb18030"),
        (SHORT, "cp1252"),
    ],
)
def test_a_legacy_encoding_is_guessed_and_named(tmp_path: Path, text: str, encoding: str) -> None:
    facts, rows = take(tmp_path, text.encode(encoding))
    assert facts.encoding == encoding
    assert rows[0]["prompt"] == text.splitlines()[1].split(",")[0]


def test_a_legacy_byte_far_behind_plain_ascii_is_found(tmp_path: Path) -> None:
    content = (
        b"prompt,response\n"
        + b"plain,text\n" * 200_000
        + "Wie heißt die größte Stadt,Köln für Müller\n".encode("cp1252")
    )
    facts, _ = take(tmp_path, content)
    assert (facts.encoding, facts.num_rows) == ("cp1252", 200_001)


@pytest.mark.parametrize(
    ("content", "code", "row", "column"),
    [
        (b"", "empty_file", None, None),
        (b"\xef\xbb\xbf", "empty_file", None, None),
        (b"\n\n\n", "empty_file", None, None),
        (b"prompt,response\n", "no_rows", None, None),
        (b"prompt,response", "no_rows", None, None),
        (b"prompt,response\n\n\n", "no_rows", None, None),
        (b"prompt,,response\na,b,c\n", "blank_column_name", None, ""),
        (b"prompt,response,\na,b,c\n", "blank_column_name", None, ""),
        (b"prompt,response,prompt\na,b,c\n", "duplicate_column_name", None, "prompt"),
        (b"prompt,response, prompt \na,b,c\n", "duplicate_column_name", None, "prompt"),
        (b"prompt,response\na,b\nc\n", "ragged_row", 2, "response"),
        (b"prompt,response\na,b,c\n", "ragged_row", 1, "response"),
        (b"prompt,response\na,b\n\nc,d,e\n", "ragged_row", 2, "response"),
        (b'prompt,response\na,b\nc,"open\nd,e\n', "unclosed_quote", 2, "response"),
        (b'prompt,response\n"open,b\n', "unclosed_quote", 1, "prompt"),
        (b'prompt,"response\na,b\n', "unclosed_quote", None, None),
        (b'prompt,response\na,b\nc,"d"e\n', "stray_quote", 2, "response"),
        (b'prompt,response\n"x\ny"z,b\n', "stray_quote", 1, "prompt"),
        (b'prompt,response\na,"b" \n', "stray_quote", 1, "response"),
        (b"prompt,response\na,b\nc,d\0e\n", "nul_character", 2, "response"),
        (b"pro\0mpt,response\na,b\n", "nul_character", None, "pro?mpt"),
        ("prompt,response\nä,b\nc,".encode() + b"d\xff\n", "undecodable", 2, "response"),
        (b"\xef\xbb\xbfprompt,response\na,b\n\xfe,d\n", "undecodable", 2, "prompt"),
        (b"prompt,response\na,b\n\0\xff,d\n", "undecodable", 2, "prompt"),
        (b"prompt,response\na,\0\nc,\xff\xff\n", "undecodable", 2, "response"),
        (b"prompt,response\n\xe9t\xe9,b\n\0,d\n", "undecodable", 1, "prompt"),
        ("prompt,response\n".encode("utf-16") + b"a\0,\0\x00\xd8b\0\n\0", "undecodable", 1, "response"),
        ("prompt,response\n".encode("utf-16") + "a,\0\n".encode("utf-16-le"), "nul_character", 1, "response"),
        ("prompt,response\na,b\n".encode("utf-16-le"), "nul_character", None, "p?r?o?m?p?t?"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_at_its_row_and_column(
    tmp_path: Path, content: bytes, code: str, row: int | None, column: str | None
) -> None:
    error = refusal(tmp_path, content)
    problem = error.errors[0]
    assert (error.code, problem.row, problem.column) == (code, row, column)


def test_binary_noise_is_undecodable(tmp_path: Path) -> None:
    noise = b"prompt,response\n" + bytes(range(128, 256)) * 4 + b"\x01\x02\x03,x\n"
    assert refusal(tmp_path, noise).code == "undecodable"


def test_all_wrong_names_of_a_header_are_listed(tmp_path: Path) -> None:
    error = refusal(tmp_path, b"a,,b,a,b\n1,2,3,4,5\n")
    assert {(problem.code, problem.column) for problem in error.errors} == {
        ("blank_column_name", ""),
        ("duplicate_column_name", "a"),
        ("duplicate_column_name", "b"),
    }


def test_more_columns_than_can_be_kept_are_refused(tmp_path: Path) -> None:
    header = ",".join(f"c{number}" for number in range(10_001))
    assert refusal(tmp_path, f"{header}\n{header}\n".encode()).code == "too_many_columns"


def test_a_name_that_no_mapping_could_hold_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, b"prompt," + b"x" * 1001 + b"\na,b\n").code == "column_name_too_long"


def test_a_cell_over_the_limit_names_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_records, "MAX_CELL_CHARS", 1000)
    error = refusal(tmp_path, b'prompt,response\n5" pipe,b\nc,' + b"x" * 1001 + b"\n")
    assert (error.code, error.errors[0].row) == ("cell_too_large", 2)


def test_a_line_without_end_is_not_gathered_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_CELL_CHARS", 500_000)
    assert refusal(tmp_path, b"prompt,response\n" + b"x" * 5_000_000).code == "line_too_long"


def test_a_million_characters_in_a_cell_are_no_problem(tmp_path: Path) -> None:
    _, rows = take(tmp_path, b"prompt,response\n" + b"x" * 1_000_000 + b",y\n")
    assert len(rows[0]["prompt"]) == 1_000_000


@pytest.mark.parametrize(
    "content",
    [
        b"\x1f\x8b\x08\x00rest",
        b"PK\x03\x04rest",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1rest",
        b"\x89PNG\r\n\x1a\nrest",
        b"\xff\xd8\xff\xe0rest",
        b"%PDF-1.7\n",
        b"\xfd7zXZ\x00rest",
        b"<!DOCTYPE html><html>",
        b'[{"prompt": "a"}]',
    ],
)
def test_what_is_no_table_is_unsupported_whatever_its_name(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnsupportedFormatError):
        take(tmp_path, content, "data.csv")


def test_a_page_reads_only_the_groups_that_hold_it(tmp_path: Path) -> None:
    content = "prompt,response\n" + "".join(f"p{number},r{number}\n" for number in range(12_000))
    facts, _ = take(tmp_path, content.encode())
    path = tmp_path / "table.parquet"
    layout = table.layout_of(path)
    assert layout.starts == (0, 5_000, 10_000)
    assert [row["prompt"] for row in table.read_rows(path, 4_999, 3)] == ["p4999", "p5000", "p5001"]
    assert [row["prompt"] for row in table.read_rows(path, 11_998, 10)] == ["p11998", "p11999"]
    assert table.read_rows(path, facts.num_rows, 10) == []
    damaged = path.read_bytes()
    # The first group's bytes are overwritten: a page of the last one must not touch them.
    path.write_bytes(damaged[:4] + b"\xff" * 1000 + damaged[1004:])
    assert table.read_rows(path, 11_999, 1) == [{"prompt": "p11999", "response": "r11999"}]


def test_rows_that_carry_much_text_make_smaller_groups(tmp_path: Path) -> None:
    take(tmp_path, b"prompt,response\n" + (b"x" * 1_000_000 + b",y\n") * 30)
    assert len(table.layout_of(tmp_path / "table.parquet").starts) >= 3


def test_json_lines_become_text_cells(tmp_path: Path) -> None:
    content = (
        '{"prompt": "a", "n": 007}\n'.replace("007", "1.0")
        + '{"n": null, "prompt": "b\\nc"}\n\n{"prompt": "", "n": true}\n'
    )
    facts, rows = take(tmp_path, content.encode(), "data.jsonl")
    assert (facts.format, facts.columns) == ("jsonl", ["prompt", "n"])
    assert rows == [{"prompt": "a", "n": "1.0"}, {"prompt": "b\nc", "n": ""}, {"prompt": "", "n": "true"}]


def test_json_lines_are_known_by_their_content(tmp_path: Path) -> None:
    facts, _ = take(tmp_path, b'{"prompt": "a", "response": "b"}\n', "data.txt")
    assert facts.format == "jsonl"


@pytest.mark.parametrize(
    ("content", "code", "row", "column"),
    [
        (b'{"a": "1"}\nnot json\n', "malformed_json", 2, None),
        (b'{"a": "1"}\n[1]\n', "not_an_object", 2, None),
        (b'{"a": "1"}\n{"b": "1"}\n', "ragged_row", 2, "a"),
        (b'{"a": "1"}\n{"a": "1", "b": "1"}\n', "ragged_row", 2, "b"),
        (b'{"a": "1", "a": "2"}\n', "malformed_json", 1, None),
        (b'{"a": ["x"]}\n', "nested_value", 1, "a"),
        (b'{"a": {"x": 1}}\n', "nested_value", 1, "a"),
        (b'{"a": "\\u0000"}\n', "nul_character", 1, "a"),
        (b'{"a": "\\ud800"}\n', "undecodable", 1, "a"),
        (b'{"": "1"}\n', "blank_column_name", None, ""),
        (b"\n\n", "empty_file", None, None),
        (b'{"a": "\xff"}\n', "undecodable", None, None),
        (b"[" * 200_000 + b"\n", "malformed_json", 1, None),
    ],
)
def test_malformed_json_lines_are_refused_at_their_row(
    tmp_path: Path, content: bytes, code: str, row: int | None, column: str | None
) -> None:
    error = refusal(tmp_path, content, "data.jsonl")
    problem = error.errors[0]
    assert (error.code, problem.row, problem.column) == (code, row, column)


def parquet(**columns: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_parquet_columns_become_text(tmp_path: Path) -> None:
    content = parquet(prompt=["007", None], number=[1, 2], flag=[True, False])
    facts, rows = take(tmp_path, content, "data.parquet")
    assert (facts.format, facts.encoding, facts.delimiter) == ("parquet", "", "")
    assert rows == [{"prompt": "007", "number": "1", "flag": "true"}, {"prompt": "", "number": "2", "flag": "false"}]


@pytest.mark.parametrize(
    ("content", "code", "column"),
    [
        (parquet(prompt=["a"], image=[b"bytes"]), "unsupported_column_type", "image"),
        (parquet(prompt=["a"], images=[["x", "y"]]), "unsupported_column_type", "images"),
        (b"PAR1 and nothing else", "malformed_parquet", None),
        (parquet(prompt=["a"])[:-20], "malformed_parquet", None),
        (parquet(prompt=[]), "no_rows", None),
    ],
)
def test_a_parquet_file_that_holds_no_text_is_refused(
    tmp_path: Path, content: bytes, code: str, column: str | None
) -> None:
    error = refusal(tmp_path, content, "data.parquet")
    assert (error.code, error.errors[0].column) == (code, column)


def test_a_csv_named_parquet_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFormatError):
        take(tmp_path, b"prompt,response\na,b\n", "data.parquet")


def test_the_same_rows_in_three_formats_make_the_same_table(tmp_path: Path) -> None:
    rows = [{"prompt": "a\nb", "response": "007"}, {"prompt": 'q"', "response": ""}]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "response"])
    writer.writeheader()
    writer.writerows(rows)
    as_lines = "\n".join(json.dumps(row) for row in rows)
    as_parquet = parquet(prompt=[row["prompt"] for row in rows], response=[row["response"] for row in rows])
    for content, name in (
        (text.getvalue().encode(), "a.csv"),
        (as_lines.encode(), "a.jsonl"),
        (as_parquet, "a.parquet"),
    ):
        assert take(tmp_path, content, name)[1] == rows
