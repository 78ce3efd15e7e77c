"""Reads JSON Lines: one flat object per line, every one with the keys of the first; values become their JSON text."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from datasets_app.ingestion.lines import Lines
from datasets_app.ingestion.refusals import check_columns, refuse
from datasets_app.ingestion.table import GROUP_CHARS, GROUP_ROWS

_HINT = 'Each line must be one object such as {"prompt": "...", "response": "..."}.'


class JsonlRecords:
    """The columns, then the rows in groups, each group as a list of columns."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.records = self._records()
        self.first = next(self.records, None)
        if self.first is None:
            raise refuse("empty_file", "The file holds no object.", hint=_HINT)
        self.columns = list(self.first)
        check_columns(self.columns)

    def groups(self) -> Iterator[list[Sequence[str]]]:
        rows: list[list[str]] = []
        full_at = self.lines.chars + GROUP_CHARS
        for number, record in enumerate(self._all_records(), start=1):
            rows.append(self._cells(number, record))
            if len(rows) == GROUP_ROWS or self.lines.chars > full_at:
                yield list(zip(*rows, strict=True))
                rows = []
                full_at = self.lines.chars + GROUP_CHARS
        if rows:
            yield list(zip(*rows, strict=True))

    def _all_records(self) -> Iterator[dict[str, Any]]:
        yield self.first or {}
        yield from self.records

    def _records(self) -> Iterator[dict[str, Any]]:
        row = 0
        for line in self.lines:
            if line.strip():
                row += 1
                yield self._parse(line, row)

    def _parse(self, line: str, row: int) -> dict[str, Any]:
        try:
            record = json.loads(
                line, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_unique_pairs
            )
        except (ValueError, RecursionError) as exc:
            raise refuse("malformed_json", f"the line is not JSON: {exc}", row=row, hint=_HINT) from None
        if not isinstance(record, dict):
            raise refuse("not_an_object", "the line is JSON, but no object", row=row, hint=_HINT)
        return record

    def _cells(self, row: int, record: dict[str, Any]) -> list[str]:
        if record.keys() != set(self.columns):
            different = sorted(record.keys() ^ set(self.columns))[0]
            message = f"the key is {'not in the first line' if different in record else 'missing'}"
            raise refuse("ragged_row", message, row=row, column=different, hint="All lines need the same keys.")
        return [_cell_text(record[name], row, name) for name in self.columns]


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _cell_text(value: Any, row: int, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        hint = "Write lists as one text with a separator (see image_separator)."
        raise refuse("nested_value", "the value is a list or an object", row=row, column=column, hint=hint)
    if "\0" in value:
        raise refuse("nul_character", "the value holds a NUL character", row=row, column=column)
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise refuse("undecodable", "the value holds half of a surrogate pair", row=row, column=column)
    return value
