"""Exports of finished runs: the dataset's own rows with result columns beside them, streamed in bounded memory."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from evaluation_app.export_rows import Row, iter_row_values
from evaluation_app.models import EvaluationRun
from ftproject.core.formula_escape import escape_formula

__all__ = [
    "CHUNK_CHARACTERS",
    "csv_chunks",
    "csv_text",
    "free_name",
    "json_chunks",
    "jsonl_chunks",
    "opened",
    "take",
]

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
    "reused",
)
CLASH_SUFFIX = "_eval"
# A chunk costs a switch between threads; a row is often only a few dozen bytes.
CHUNK_CHARACTERS = 64 * 1024
# Rows that are written at once: a call of the csv module for each would take longer than the rows.
CSV_ROWS = 50


def result_columns(run: EvaluationRun) -> dict[str, str]:
    """Sample field or metric -> name of its column. A name that the dataset has already gets `_eval` behind it.

    The dataset's prompt or ground-truth column that is called just that is not repeated: the cells are the same.
    """
    mapping = run.mapping
    same = {
        "prompt": mapping.prompt_column,
        "ground_truth": mapping.ground_truth_column or mapping.response_column,
    }
    confidence = ["confidence"] if run.metric_options.get("confidence") else []
    fields = [field for field in RESULT_FIELDS if same.get(field) != field]
    return {field: free_name(field, run.dataset.columns) for field in [*fields, *named_metrics(run), *confidence]}


def named_metrics(run: EvaluationRun) -> list[str]:
    """The metrics of the run whose values lie in `Sample.scores`."""
    return [entry["name"] for entry in run.metric_options.get("metrics", [])]


def free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += CLASH_SUFFIX
    return name


def iter_results(run: EvaluationRun) -> Iterator[tuple[Row, list[Any]]]:
    """Each row of the run with its results in the order of `result_columns`."""
    metrics = named_metrics(run)
    fields = list(result_columns(run))
    stored = [field for field in fields if field not in metrics]
    for row, (_, *values) in iter_row_values(run, [*stored, "scores"] if metrics else stored):
        if not metrics:
            yield row, values
            continue
        scores = values.pop()
        known = dict(zip(stored, values, strict=True))
        yield row, [scores.get(field) if field in metrics else known[field] for field in fields]


def csv_chunks(run: EvaluationRun, *, raw: bool = False) -> Iterator[str]:
    header = [*run.dataset.columns, *result_columns(run).values()]
    return csv_text(header, ([*row.values(), *values] for row, values in iter_results(run)), raw=raw)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]], *, raw: bool) -> Iterator[str]:
    """CSV text in chunks; booleans are True and False, null is an empty cell."""
    guard: Callable[[str], str] = str if raw else escape_formula
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    waiting: list[list[Any]] = [[guard(name) for name in header]]
    for row in rows:
        waiting.append([guard(cell) if isinstance(cell, str) else cell for cell in row])
        if len(waiting) >= CSV_ROWS:
            writer.writerows(waiting)
            waiting.clear()
            if buffer.tell() >= CHUNK_CHARACTERS:
                yield take(buffer)
    writer.writerows(waiting)
    yield take(buffer)


def take(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text


def json_chunks(run: EvaluationRun, *, facts: Mapping[str, Any]) -> Iterator[str]:
    """`{"run": facts, "columns": [...], "result_columns": {...}, "samples": [...]}`, every value exactly as stored."""
    head = {"run": facts, "columns": run.dataset.columns, "result_columns": result_columns(run)}
    buffer = io.StringIO()
    buffer.write(as_json(head)[:-1])
    buffer.write(', "samples": [')
    for number, text in enumerate(json_objects(run)):
        buffer.write(",\n" if number else "\n")
        buffer.write(text)
        if buffer.tell() >= CHUNK_CHARACTERS:
            yield take(buffer)
    buffer.write("\n]}\n")
    yield take(buffer)


def jsonl_chunks(run: EvaluationRun) -> Iterator[str]:
    """The same objects as `samples` of the JSON export, one a line: what another program can read as it comes."""
    buffer = io.StringIO()
    for text in json_objects(run):
        buffer.write(text)
        buffer.write("\n")
        if buffer.tell() >= CHUNK_CHARACTERS:
            yield take(buffer)
    yield take(buffer)


def json_objects(run: EvaluationRun) -> Iterator[str]:
    names = list(result_columns(run).values())
    return (as_json({**row, **dict(zip(names, values, strict=True))}) for row, values in iter_results(run))


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def opened(chunks: Iterator[str]) -> Iterator[str]:
    """The same chunks with the first one made already: what cannot be exported is refused while it still can be."""
    return chain([next(chunks, "")], chunks)
