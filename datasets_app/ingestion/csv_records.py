"""Reads CSV strictly: every record as wide as the header, no stray or open quote, cells verbatim."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets_app.ingestion.csv_diagnosis import explain_csv_error
from datasets_app.ingestion.lines import MAX_CELL_CHARS, Lines
from datasets_app.ingestion.refusals import check_columns, refuse
from datasets_app.ingestion.table import GROUP_CHARS, GROUP_ROWS

_DAMAGE = {"nul": re.compile("\0"), "undecodable": re.compile("[\ud800-\udfff\ufffd]")}
_DAMAGE_MESSAGES = {
    "nul": "the cell holds a NUL character",
    "undecodable": "the cell holds bytes that are no text in the file's encoding",
}
_DAMAGE_HINT = "Save the file as UTF-8 again and look at this cell."


@dataclass(frozen=True)
class CsvForm:
    """How the text of a CSV file is to be read; `suspect` as in Survey."""

    path: Path
    encoding: str
    delimiter: str
    decode_errors: str = "strict"
    suspect: str | None = None


class CsvRecords:
    """The columns, then the rows in groups, each group as a list of columns."""

    def __init__(self, form: CsvForm, lines: Lines) -> None:
        # Process-wide, and only ever raised to this one value.
        csv.field_size_limit(MAX_CELL_CHARS)
        self.form = form
        self.lines = lines
        self.columns: list[str] = []
        self.done = 0
        self.reader = csv.reader(iter(lines), delimiter=form.delimiter, strict=True)
        try:
            self.columns = next((record for record in self.reader if record), [])
        except csv.Error as exc:
            raise explain_csv_error(form, exc, columns=[]) from None
        if not self.columns:
            raise refuse("empty_file", "The file holds no header.")
        self._refuse_damage(None, self.columns)
        check_columns(self.columns)

    def groups(self) -> Iterator[list[Sequence[str]]]:
        try:
            for rows in self._row_groups():
                self._look_for_damage(rows)
                self.done += len(rows)
                yield list(zip(*rows, strict=True))
        except csv.Error as exc:
            raise explain_csv_error(self.form, exc, columns=self.columns) from None

    def _row_groups(self) -> Iterator[list[list[str]]]:
        rows: list[list[str]] = []
        width, lines = len(self.columns), self.lines
        full_at = lines.chars + GROUP_CHARS
        for record in self.reader:
            if len(record) != width:
                if not record:  # an empty line is no record
                    continue
                self._look_for_damage(rows)
                raise self._ragged(record, self.done + len(rows) + 1)
            rows.append(record)
            if len(rows) == GROUP_ROWS or lines.chars > full_at:
                yield rows
                rows = []
                full_at = lines.chars + GROUP_CHARS
        if rows:
            yield rows

    def _ragged(self, record: list[str], row: int) -> Exception:
        width = len(self.columns)
        message = f"{len(record)} cells where the header has {width} (line {self.reader.line_num} of the file)"
        # The first column that went missing, or the last one before the cells too many.
        column = self.columns[min(len(record), width - 1)]
        hint = f"Put cells that hold {self.form.delimiter!r} or a line break in double quotes."
        return refuse("ragged_row", message, row=row, column=column, hint=hint)

    def _look_for_damage(self, rows: list[list[str]]) -> None:
        if self.form.suspect:
            for number, record in enumerate(rows, start=self.done + 1):
                self._refuse_damage(number, record)

    def _refuse_damage(self, row: int | None, record: list[str]) -> None:
        suspect = self.form.suspect
        if suspect is None:
            return
        for column, cell in zip(self.columns, record, strict=True):
            if _DAMAGE[suspect].search(cell):
                name = column.encode("utf-8", "replace").decode().replace("\0", "?")
                code = "nul_character" if suspect == "nul" else "undecodable"
                raise refuse(code, _DAMAGE_MESSAGES[suspect], row=row, column=name, hint=_DAMAGE_HINT)
