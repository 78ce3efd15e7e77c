"""Exports of a comparison: the dataset's rows with both answers beside them as CSV, JSON or one page; all streamed."""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from django.http import StreamingHttpResponse
from rest_framework.utils.encoders import JSONEncoder

from evaluation_app.comparison.joined import JoinedRows
from evaluation_app.comparison.page import page_chunks, page_headers
from evaluation_app.comparison.report import Comparison, report_of
from evaluation_app.comparison.serializers import ComparisonSerializer
from evaluation_app.exports import CHUNK_CHARACTERS, csv_text, opened, take

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
    return StreamingHttpResponse(opened(chunks), content_type=CONTENT_TYPES[file_format], headers=headers)


def joined(comparison: Comparison, transition: str | None) -> JoinedRows:
    paired = comparison.paired
    runs = {BASELINE: paired.baseline, CANDIDATE: paired.candidate}
    return JoinedRows(runs, {CANDIDATE: paired}, transition=transition)


def csv_chunks(comparison: Comparison, *, transition: str | None = None, raw: bool = False) -> Iterator[str]:
    rows = joined(comparison, transition)
    return csv_text(rows.header(), rows, raw=raw)


def json_chunks(comparison: Comparison, *, transition: str | None = None) -> Iterator[str]:
    """`{"comparison": {...}, "columns": [...], "result_columns": {...}, "rows": [...]}`, every value as stored."""
    rows = joined(comparison, transition)
    facts = ComparisonSerializer(report_of(comparison)).data
    return json_document({"comparison": facts}, rows)


def json_document(facts: Mapping[str, Any], rows: JoinedRows) -> Iterator[str]:
    """The facts, the names of the columns, and every row."""
    head = {**facts, "columns": rows.originals, "result_columns": rows.names()}
    buffer = io.StringIO()
    buffer.write(json.dumps(head, ensure_ascii=False, allow_nan=False, cls=JSONEncoder)[:-1])
    buffer.write(', "rows": [')
    header = rows.header()
    for number, cells in enumerate(rows):
        buffer.write(",\n" if number else "\n")
        buffer.write(json.dumps(dict(zip(header, cells, strict=True)), ensure_ascii=False, allow_nan=False))
        if buffer.tell() >= CHUNK_CHARACTERS:
            yield take(buffer)
    buffer.write("\n]}\n")
    yield take(buffer)
