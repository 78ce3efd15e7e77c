"""Finds the row and column of a CSV error by reading the file again; runs only after the error is certain."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from datasets_app.ingestion.lines import MAX_CELL_CHARS, Lines
from datasets_app.ingestion.refusals import refuse

if TYPE_CHECKING:
    from datasets_app.ingestion.csv_records import CsvForm

OPEN_QUOTE = "unexpected end of data"
QUOTE_HINT = 'A quote inside a quoted cell is written twice: "he said ""yes""".'


def explain_csv_error(form: CsvForm, error: csv.Error, *, columns: list[str]) -> Exception:
    """The refusal for `error`, which a strict pass over the file raised."""
    records, line, text = _failing_record(form)
    number = records or None
    place = f"(begins at line {line} of the file)"
    if "field limit" in str(error):
        message = f"a cell is longer than {MAX_CELL_CHARS} characters {place}"
        hint = "Perhaps a quote that is never closed swallowed the rows after it."
        return refuse("cell_too_large", message, row=number, hint=hint)
    cells = _cells_before_error(text, form.delimiter, unclosed=OPEN_QUOTE in str(error))
    column = columns[min(cells, len(columns)) - 1] if columns else None
    if OPEN_QUOTE in str(error):
        return refuse("unclosed_quote", f"a quote is never closed {place}", row=number, column=column, hint=QUOTE_HINT)
    message = f"text follows a closing quote {place}"
    return refuse("stray_quote", message, row=number, column=column, hint=QUOTE_HINT)


def _failing_record(form: CsvForm) -> tuple[int, int, str]:
    """Number of the record (0 is the header), the line where it begins, and its text as far as it was read."""
    records, consumed = 0, 0
    with Lines(form.path, form.encoding, form.decode_errors) as lines:
        reader = csv.reader(iter(lines), delimiter=form.delimiter, strict=True)
        try:
            for record in reader:
                records += bool(record)
                consumed = reader.line_num
        except csv.Error:
            pass
    with Lines(form.path, form.encoding, form.decode_errors) as lines:
        text = "".join(_some_lines(lines, consumed, reader.line_num))
    return records, consumed + 1, text


def _some_lines(lines: Lines, start: int, stop: int) -> Iterator[str]:
    for number, line in enumerate(lines):
        if start <= number < stop:
            yield line


def _cells_before_error(text: str, delimiter: str, *, unclosed: bool) -> int:
    """How many cells the record holds up to and including the one with the error."""
    if not unclosed:
        low, high = 0, len(text)
        while low < high:  # the shortest prefix that fails ends with the character after the closing quote
            middle = (low + high) // 2
            if _fails_after_quote(text[:middle], delimiter):
                high = middle
            else:
                low = middle + 1
        text = text[: low - 1]
    record: list[str] = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    return max(len(record), 1)


def _fails_after_quote(text: str, delimiter: str) -> bool:
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            pass
    except csv.Error as exc:
        return "expected after" in str(exc)
    return False
