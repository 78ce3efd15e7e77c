"""The way of a file into a table: what it is, its records read strictly, written group by group."""

import codecs
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from datasets_app.ingestion.csv_blocks import UnprovenError, proven_groups
from datasets_app.ingestion.csv_records import CsvForm, CsvRecords
from datasets_app.ingestion.delimiters import detect_delimiter
from datasets_app.ingestion.jsonl_records import JsonlRecords
from datasets_app.ingestion.lines import Lines
from datasets_app.ingestion.parquet_records import ParquetRecords
from datasets_app.ingestion.refusals import refuse, unsupported
from datasets_app.ingestion.survey import Survey
from datasets_app.ingestion.table import write_table

JSONL_SUFFIXES = (".jsonl", ".ndjson")
TSV_SUFFIXES = (".tsv", ".tab")
JSONL_HINT = "JSON Lines are UTF-8 text."


@dataclass(frozen=True)
class TableFacts:
    """What was stored: `format` is csv, tsv, jsonl or parquet; encoding and delimiter are empty where meaningless."""

    format: str
    encoding: str
    delimiter: str
    columns: list[str]
    num_rows: int


class Records(Protocol):
    columns: list[str]

    def groups(self) -> Iterable[Sequence[Any]]: ...


def ingest_file(path: Path, survey: Survey, filename: str, target: Path) -> TableFacts:
    """Writes the table of `path` to `target`; whatever is wrong with the file is refused with row and column."""
    if survey.is_parquet:
        return _store(ParquetRecords(path), target, "parquet", "", "")
    suffix = Path(filename).suffix.lower()
    if suffix == ".parquet":
        raise unsupported("named .parquet but is none", "Upload the Parquet file itself, or a CSV.")
    sample = _sample_text(survey)
    with Lines(path, survey.encoding, survey.decode_errors) as lines:
        if suffix in JSONL_SUFFIXES or _is_object_line(sample):
            _refuse_suspect(survey)
            return _store(JsonlRecords(lines), target, "jsonl", survey.encoding, "")
        delimiter = detect_delimiter(sample, prefer="\t" if suffix in TSV_SUFFIXES else None)
        form = CsvForm(path, survey.encoding, delimiter, survey.decode_errors, survey.suspect)
        return _store_csv(CsvRecords(form, lines), target)


def _store_csv(records: CsvRecords, target: Path) -> TableFacts:
    form = records.form
    facts = ("tsv" if form.delimiter == "\t" else "csv", form.encoding, form.delimiter)
    if form.encoding in {"utf-8", "utf-8-sig"} and not form.suspect:
        groups = proven_groups(form.path, records.columns, form.delimiter)
        with suppress(UnprovenError):
            return _stored(records.columns, write_table(target, records.columns, groups), *facts)
    return _store(records, target, *facts)


def _store(records: Records, target: Path, kind: str, encoding: str, delimiter: str) -> TableFacts:
    return _stored(records.columns, write_table(target, records.columns, records.groups()), kind, encoding, delimiter)


def _stored(columns: list[str], num_rows: int, kind: str, encoding: str, delimiter: str) -> TableFacts:
    if not num_rows:
        raise refuse("no_rows", "The file holds a header but no row.", hint="Add at least one row below the header.")
    return TableFacts(kind, encoding, delimiter, columns, num_rows)


def _sample_text(survey: Survey) -> str:
    """The start of the file, cut after its last whole line unless it is the whole file."""
    text = codecs.getincrementaldecoder(survey.encoding)(survey.decode_errors).decode(survey.sample)
    if survey.size_bytes == len(survey.sample):
        return text
    cut = max(text.rfind("\n"), text.rfind("\r"))
    return text[: cut + 1] or text


def _is_object_line(sample: str) -> bool:
    return sample.lstrip().startswith('{"')


def _refuse_suspect(survey: Survey) -> None:
    if survey.suspect == "nul":
        raise refuse("nul_character", "The file holds NUL characters.", hint=JSONL_HINT)
    if survey.suspect or not survey.encoding.startswith("utf"):
        raise refuse("undecodable", "The file holds bytes that are not UTF-8.", hint=JSONL_HINT)
