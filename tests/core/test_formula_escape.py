"""Cells of a CSV export can never run as a formula, and no stored value is lost by that."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation_app.exports import csv_text
from ftproject.core.formula_escape import escape_formula, unescape_formula

RISKY_STARTS = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20' \u00a0\u200b\ufeff0123456789.eE%|"
cells = st.one_of(st.text(max_size=40), st.text(alphabet=RISKY_STARTS, max_size=8))


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-2+3",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\nhello",
        "  =HYPERLINK(1)",
        "\u00a0=1",
        "\ufeff=1",
        "\uff1d1+1",
        "\uff20x",
        "-",
        "--5",
        "-5-5",
        "+49 30 1234567",
        "\t7",
    ],
)
def test_a_cell_that_a_spreadsheet_would_run_gets_an_apostrophe(cell: str) -> None:
    assert escape_formula(cell) == f"'{cell}"


@pytest.mark.parametrize(
    "cell", ["", "7", "-5.2", "+3", "1e-5", "-.5", "007", "a=b", "7 - 2", "text", "'quoted'", " x"]
)
def test_numbers_and_plain_text_stay_as_they_are(cell: str) -> None:
    assert escape_formula(cell) == cell


@given(cells)
def test_taking_the_apostrophe_off_gives_back_every_value(cell: str) -> None:
    assert unescape_formula(escape_formula(cell)) == cell


@given(cells)
def test_no_escaped_cell_starts_like_a_formula(cell: str) -> None:
    shown = escape_formula(cell)
    first = shown.lstrip()[:1]
    assert first not in "=@\uff1d\uff0b\uff0d\uff20" or not first
    if first in {"+", "-"}:
        float(shown)


@given(st.lists(st.fixed_dictionaries({"a": cells, "b": cells}), max_size=5))
def test_a_written_file_reads_back_to_the_same_cells(rows: list[dict[str, str]]) -> None:
    text = "".join(csv_text(["a", "b"], [[row["a"], row["b"]] for row in rows], raw=False))
    header, *lines = list(csv.reader(io.StringIO(text, newline="")))
    assert header == ["a", "b"]
    assert [[unescape_formula(cell) for cell in line] for line in lines] == [[row["a"], row["b"]] for row in rows]


@given(st.lists(st.fixed_dictionaries({"a": cells, "b": cells}), max_size=5))
def test_a_raw_file_holds_the_cells_exactly(rows: list[dict[str, str]]) -> None:
    text = "".join(csv_text(["a", "b"], [[row["a"], row["b"]] for row in rows], raw=True))
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [[row["a"], row["b"]] for row in rows]


def test_a_header_is_escaped_too() -> None:
    assert "".join(csv_text(["=x"], [["1"]], raw=False)) == "'=x\r\n1\r\n"
