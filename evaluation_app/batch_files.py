"""The files that a batch of evaluations writes: joined rows as CSV or JSON, comparisons as pages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation_app.comparison.exports import json_document
from evaluation_app.comparison.joined import JoinedRows
from evaluation_app.comparison.page import page_chunks
from evaluation_app.comparison.report import Comparison, report_of
from evaluation_app.comparison.serializers import ComparisonSerializer
from evaluation_app.exports import csv_chunks, csv_text
from evaluation_app.models import EvaluationRun
from evaluation_app.serializers import EvaluationRunDetailSerializer
from ftproject.core.storage import publish_file

FORMATS = (".csv", ".json", ".html")
PAGE_ROWS = 200


@dataclass(frozen=True)
class Outcome:
    """The runs over one dataset by model, and the models that were compared with the first one."""

    runs: Mapping[str, EvaluationRun]
    comparisons: Mapping[str, Comparison]

    @property
    def dataset_id(self) -> int:
        return next(iter(self.runs.values())).dataset_id

    def facts(self) -> dict[str, Any]:
        return {
            "runs": [dict(EvaluationRunDetailSerializer(run).data) for run in self.runs.values()],
            "comparisons": [dict(ComparisonSerializer(report_of(one)).data) for one in self.comparisons.values()],
        }

    def rows(self) -> JoinedRows:
        return JoinedRows(self.runs, {name: one.paired for name, one in self.comparisons.items()})


def write_files(path: Path, outcomes: Sequence[Outcome], *, raw: bool) -> list[Path]:
    """Writes what the ending of the path says; where that takes several files, their names say of what."""
    texts = {name: chunks for outcome in outcomes for name, chunks in texts_of(outcome, path.suffix, raw=raw)}
    return [write_file(named(path, parts, several=len(texts) > 1), chunks) for parts, chunks in texts.items()]


def texts_of(outcome: Outcome, suffix: str, *, raw: bool) -> Iterator[tuple[tuple[str, ...], Iterable[str]]]:
    """What the file is about, and its text in chunks."""
    dataset = f"dataset{outcome.dataset_id}"
    if suffix == ".html":
        for name, comparison in outcome.comparisons.items():
            yield (dataset, name), page_chunks(comparison, max_rows=PAGE_ROWS)
    elif suffix == ".json":
        yield (dataset,), json_document(outcome.facts(), outcome.rows())
    elif len(outcome.runs) == 1:
        yield (dataset,), csv_chunks(*outcome.runs.values(), raw=raw)
    else:
        rows = outcome.rows()
        yield (dataset,), csv_text(rows.header(), rows, raw=raw)


def named(path: Path, parts: Sequence[str], *, several: bool) -> Path:
    return path.with_stem("_".join([path.stem, *parts])) if several else path


def write_file(path: Path, chunks: Iterable[str]) -> Path:
    with publish_file(path.absolute()) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(chunks)
    return path
