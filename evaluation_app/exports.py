"""Exports of finished runs: the dataset's own rows with result columns beside them, streamed in bounded memory."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasets_app.selectors import iter_rows
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.selectors import iter_samples
from ftproject.core.formula_escape import escape_formula

RESULT_FIELDS = (
    "index",
    "prompt",
    "ground_truth",
    "prediction",
    "exact_match",
    "token_f1",
    "token_precision",
    "token_recall",
    "skipped",
    "skipped_reason",
    "seen_in_training",
    "label",
    "finish_reason",
)
JOINED_FIELDS = ("prediction", "exact_match", "token_f1", "skipped_reason")
CLASH_SUFFIX = "_eval"
# A chunk costs a switch between threads; a row is often only a few dozen bytes.
CHUNK_CHARACTERS = 64 * 1024

Cells = dict[str, Any]


def result_columns(run: EvaluationRun) -> dict[str, str]:
    """Sample field -> name of its column. A name that the dataset has already gets `_eval` behind it.

    The dataset's prompt or ground-truth column that is called just that is not repeated: the cells are the same.
    """
    mapping = run.mapping
    same = {
        "prompt": mapping.prompt_column,
        "ground_truth": mapping.ground_truth_column or mapping.response_column,
    }
    fields = [field for field in RESULT_FIELDS if same.get(field) != field]
    return {field: free_name(field, run.dataset.columns) for field in fields}


def free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += CLASH_SUFFIX
    return name


class SampleCursor:
    """Walks one run's samples beside the dataset's rows."""

    def __init__(self, run: EvaluationRun) -> None:
        self.samples = iter_samples(run=run)
        self.following = next(self.samples, None)

    def take(self, index: int) -> Sample | None:
        """The sample of this row, if the run has one; rows must be asked for in ascending order."""
        sample = self.following
        if sample is None or sample.index != index:
            return None
        self.following = next(self.samples, None)
        return sample


def iter_row_samples(runs: Sequence[EvaluationRun]) -> Iterator[tuple[dict[str, str], list[Sample | None]]]:
    """Each dataset row that any of the runs covers, in dataset order, with the sample of each run."""
    cursors = [SampleCursor(run) for run in runs]
    for index, row in iter_rows(dataset=runs[0].dataset):
        if all(cursor.following is None for cursor in cursors):
            return
        found = [cursor.take(index) for cursor in cursors]
        if any(found):
            yield row, found


def iter_export(run: EvaluationRun) -> Iterator[Cells]:
    columns = result_columns(run)
    for row, samples in iter_row_samples([run]):
        yield {**row, **{name: getattr(samples[0], field) for field, name in columns.items()}}


def joined_csv_chunks(runs: Mapping[str, EvaluationRun], *, raw: bool = False) -> Iterator[str]:
    """Several runs over one dataset side by side: the row number, the dataset's columns, a set of columns a run."""
    originals = next(iter(runs.values())).dataset.columns
    index = free_name("index", originals)
    columns = [[free_name(f"{field}_{name}", originals) for field in JOINED_FIELDS] for name in runs]

    def rows() -> Iterator[Cells]:
        for row, samples in iter_row_samples(list(runs.values())):
            cells: Cells = {**row, index: next(sample.index for sample in samples if sample)}
            for names, sample in zip(columns, samples, strict=True):
                cells |= {name: getattr(sample, field, None) for field, name in zip(JOINED_FIELDS, names, strict=True)}
            yield cells

    return write_csv([index, *originals, *(name for names in columns for name in names)], rows(), raw=raw)


def csv_chunks(run: EvaluationRun, *, raw: bool = False) -> Iterator[str]:
    header = [*run.dataset.columns, *result_columns(run).values()]
    return write_csv(header, iter_export(run), raw=raw)


def write_csv(header: Sequence[str], rows: Iterable[Cells], *, raw: bool) -> Iterator[str]:
    """CSV text in chunks; booleans are True and False, null is an empty cell."""
    guard: Callable[[str], str] = str if raw else escape_formula
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([guard(name) for name in header])
    for row in rows:
        writer.writerow([cell_text(row.get(name), guard) for name in header])
        if buffer.tell() >= CHUNK_CHARACTERS:
            yield take(buffer)
    yield take(buffer)


def cell_text(value: Any, guard: Callable[[str], str]) -> str:
    if value is None:
        return ""
    return guard(value) if isinstance(value, str) else str(value)


def take(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text


def json_chunks(run: EvaluationRun, *, facts: Mapping[str, Any]) -> Iterator[str]:
    """`{"run": facts, "columns": [...], "result_columns": {...}, "samples": [...]}`, every value exactly as stored."""
    columns = result_columns(run)
    head = {"run": facts, "columns": run.dataset.columns, "result_columns": columns}
    buffer = io.StringIO()
    buffer.write(json.dumps(head, ensure_ascii=False, allow_nan=False)[:-1])
    buffer.write(', "samples": [')
    for number, cells in enumerate(iter_export(run)):
        buffer.write(",\n" if number else "\n")
        buffer.write(json.dumps(cells, ensure_ascii=False, allow_nan=False))
        if buffer.tell() >= CHUNK_CHARACTERS:
            yield take(buffer)
    buffer.write("\n]}\n")
    yield take(buffer)
