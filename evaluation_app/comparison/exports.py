"""Exports of a comparison: the dataset's rows with both answers beside them as CSV, JSON or one page; all streamed."""

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from django.http import StreamingHttpResponse
from rest_framework.utils.encoders import JSONEncoder

from evaluation_app.comparison.judged import PairedRuns
from evaluation_app.comparison.loading import UNKNOWN
from evaluation_app.comparison.page import page_chunks, page_headers
from evaluation_app.comparison.report import Comparison, report_of
from evaluation_app.comparison.serializers import ComparisonSerializer
from evaluation_app.exports import CHUNK_CHARACTERS, Cells, free_name, iter_row_samples, take, write_csv
from evaluation_app.models import Sample
from ftproject.engine.metrics import ALWAYS_SCORED

BASELINE, CANDIDATE = "baseline", "candidate"
CONTENT_TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json", "html": "text/html; charset=utf-8"}


def export_response(
    comparison: Comparison, *, file_format: str, transition: str | None, raw: bool, max_rows: int
) -> StreamingHttpResponse:
    headers = {"X-Content-Type-Options": "nosniff"}
    placed = "attachment"
    if file_format == "html":
        chunks, placed = page_chunks(comparison, transition=transition, max_rows=max_rows), "inline"
        headers |= page_headers()
    elif file_format == "json":
        chunks = json_chunks(comparison, transition=transition)
    else:
        chunks = csv_chunks(comparison, transition=transition, raw=raw)
    paired = comparison.paired
    name = f"comparison_{paired.baseline.pk}_{paired.candidate.pk}.{file_format}"
    headers["Content-Disposition"] = f'{placed}; filename="{name}"'
    return StreamingHttpResponse(chunks, content_type=CONTENT_TYPES[file_format], headers=headers)


class JoinedRows:
    """The rows that either run covers, in dataset order; those that could not be paired have no transition."""

    def __init__(self, paired: PairedRuns, transition: str | None) -> None:
        self.paired, self.transition = paired, transition
        originals = paired.baseline.dataset.columns
        scores = sorted({name for name in paired.pairs.figures if name not in ALWAYS_SCORED and name != "accuracy"})
        labels = ["label"] if paired.pairs.true is not None else []
        self.fields = ["prediction", *labels, *ALWAYS_SCORED, *scores, "skipped_reason"]
        self.common = {name: free_name(name, originals) for name in ("index", "transition", "seen_in_training")}
        self.columns = [
            {field: free_name(f"{field}_{side}", originals) for field in self.fields} for side in (BASELINE, CANDIDATE)
        ]

    def header(self) -> list[str]:
        sides = [columns[field] for field in self.fields for columns in self.columns]
        return [self.common["index"], *self.paired.baseline.dataset.columns, *sides, *list(self.common.values())[1:]]

    def __iter__(self) -> Iterator[Cells]:
        pairs = self.paired.pairs
        told = zip(pairs.index.tolist(), pairs.transitions(), pairs.seen.tolist(), strict=True)
        following = next(told, None)
        for row, samples in iter_row_samples([self.paired.baseline, self.paired.candidate]):
            index = next(sample.index for sample in samples if sample)
            transition, seen = None, None
            if following is not None and following[0] == index:
                transition, seen = following[1], None if following[2] == UNKNOWN else bool(following[2])
                following = next(told, None)
            if self.transition in (None, transition):
                yield {**row, **self.cells(samples), **self.facts(index, transition, seen)}

    def cells(self, samples: Iterable[Sample | None]) -> Cells:
        return {
            name: value_of(sample, field)
            for columns, sample in zip(self.columns, samples, strict=True)
            for field, name in columns.items()
        }

    def facts(self, index: int, transition: str | None, seen: bool | None) -> Cells:
        values = {"index": index, "transition": transition, "seen_in_training": seen}
        return {name: values[field] for field, name in self.common.items()}


def value_of(sample: Sample | None, field: str) -> Any:
    if sample is None:
        return None
    return getattr(sample, field) if hasattr(sample, field) else sample.scores.get(field)


def csv_chunks(comparison: Comparison, *, transition: str | None = None, raw: bool = False) -> Iterator[str]:
    rows = JoinedRows(comparison.paired, transition)
    return write_csv(rows.header(), rows, raw=raw)


def json_chunks(comparison: Comparison, *, transition: str | None = None) -> Iterator[str]:
    """`{"comparison": {...}, "columns": [...], "result_columns": {...}, "rows": [...]}`, every value as stored."""
    rows = JoinedRows(comparison.paired, transition)
    columns = {**rows.common, BASELINE: rows.columns[0], CANDIDATE: rows.columns[1]}
    facts = ComparisonSerializer(report_of(comparison)).data
    head = {"comparison": facts, "columns": comparison.paired.baseline.dataset.columns, "result_columns": columns}
    buffer = io.StringIO()
    buffer.write(json.dumps(head, ensure_ascii=False, allow_nan=False, cls=JSONEncoder)[:-1])
    buffer.write(', "rows": [')
    for number, cells in enumerate(rows):
        buffer.write(",\n" if number else "\n")
        buffer.write(json.dumps(cells, ensure_ascii=False, allow_nan=False))
        if buffer.tell() >= CHUNK_CHARACTERS:
            yield take(buffer)
    buffer.write("\n]}\n")
    yield take(buffer)
