"""Reads the scores of a run's evaluated rows into arrays, page by page: a million rows take some 150 MB and no more."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import TextField
from django.db.models.functions import Cast

from evaluation_app.models import EvaluationRun, Sample
from ftproject.engine.classification import parse_label
from ftproject.engine.metrics import ALWAYS_SCORED, Metric, ScoringOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Labels = NDArray[np.int64]
    Flags = NDArray[np.int8]
    Columns = dict[str, Sequence[Any]]
    Arrays = dict[str, NDArray[Any]]

PAGE = 10_000
UNKNOWN = -1
NO_LABEL = -1
ACCURACY = "accuracy"
FIELDS = ("index", "skipped", "seen_in_training", "reused", *ALWAYS_SCORED)
SCORE_FIELDS = ("scores", "score_details")
LABEL_FIELDS = ("label", "ground_truth")
OVER, UNDER = " numerator", " denominator"


@dataclass(frozen=True)
class RunRows:
    """One number per evaluated row, ascending by index.

    `figures` has what each metric's figure over rows is summed from: numerators and denominators. `seen` is 1, 0 or
    UNKNOWN; `predicted` and `true` are places in the run's labels or NO_LABEL, and None outside classification.
    """

    index: Labels
    seen: Flags
    figures: dict[str, tuple[Numbers, Numbers]]
    predicted: Labels | None
    true: Labels | None
    skipped: Labels
    num_reused: int

    @property
    def right(self) -> tuple[Numbers, Numbers]:
        """Right or not, and whether that can be said at all: by label in classification, else by exact match."""
        return self.figures.get(ACCURACY, self.figures["exact_match"])


class RowReader:
    """Turns the samples of one run into columns of numbers."""

    def __init__(self, run: EvaluationRun) -> None:
        self.run = run
        self.options = ScoringOptions.from_dict(run.metric_options)
        self.labels = labels_of(run)
        self.true_places: dict[str, int] = {}

    def read(self) -> RunRows:
        import numpy as np

        skipped, pages = [np.array([], dtype=np.int64)], [self.arrays(dict.fromkeys(self.fields(), ()))]
        for columns in self.pages():
            page = self.arrays(columns)
            evaluated = ~np.array(columns["skipped"], dtype=bool)
            skipped.append(page["index"][~evaluated])
            pages.append({name: values[evaluated] for name, values in page.items()})
        # Column by column, and its pieces let go: all of them twice would be the peak of a long comparison.
        kept = {name: np.concatenate([page.pop(name) for page in pages]) for name in list(pages[0])}
        return RunRows(
            index=kept["index"],
            seen=kept["seen"],
            figures={
                name.removesuffix(OVER): (values, kept[name.removesuffix(OVER) + UNDER])
                for name, values in kept.items()
                if name.endswith(OVER)
            },
            predicted=kept.get("predicted"),
            true=kept.get("true"),
            skipped=np.concatenate(skipped),
            num_reused=int(kept["reused"].sum()),
        )

    def fields(self) -> Sequence[str]:
        scores = SCORE_FIELDS if self.options.metrics else ()
        return (*FIELDS, *scores, *(LABEL_FIELDS if self.labels is not None else ()))

    def pages(self) -> Iterator[Columns]:
        """Samples by index, a page a query: an open cursor would pin SQLite's log."""
        names, last = self.fields(), -1
        texts = {name: Cast(name, TextField()) for name in SCORE_FIELDS if name in names}
        asked = [texts.get(name, name) for name in names]
        samples = Sample.objects.filter(run=self.run).order_by("index")
        while page := list(samples.filter(index__gt=last).values_list(*asked)[:PAGE]):
            columns = dict(zip(names, zip(*page, strict=True), strict=True))
            # One parse a page: a million small ones take seven seconds, most of them in calls.
            yield columns | {name: json.loads(f"[{','.join(columns[name])}]") for name in texts}
            last = page[-1][0]

    def arrays(self, columns: Columns) -> Arrays:
        import numpy as np

        seen = [UNKNOWN if value is None else int(value) for value in columns["seen_in_training"]]
        found: Arrays = {
            "index": np.array(columns["index"], dtype=np.int64),
            "seen": np.array(seen, dtype=np.int8),
            "reused": np.array(columns["reused"], dtype=bool),
        }
        for name in ALWAYS_SCORED:
            values = np.array(columns[name], dtype=float)
            found |= {name + OVER: np.nan_to_num(values), name + UNDER: (~np.isnan(values)).astype(float)}
        for metric in self.options.metrics:
            parts = [
                parts_of(metric, *scores) for scores in zip(columns["scores"], columns["score_details"], strict=True)
            ]
            over, under = np.array(parts, dtype=float).reshape(-1, 2).T
            found |= {metric.name + OVER: over, metric.name + UNDER: under}
        return found | self.label_arrays(columns)

    def label_arrays(self, columns: Columns) -> Arrays:
        import numpy as np

        if self.labels is None:
            return {}
        predicted = np.array([self.place(label) for label in columns["label"]], dtype=np.int64)
        true = np.array([self.true_place(text) for text in columns["ground_truth"]], dtype=np.int64)
        labelled = (true != NO_LABEL).astype(float)
        right = (predicted == true) * labelled
        return {"predicted": predicted, "true": true, ACCURACY + OVER: right, ACCURACY + UNDER: labelled}

    def place(self, label: str | None) -> int:
        return self.labels.index(label) if self.labels and label in self.labels else NO_LABEL

    def true_place(self, ground_truth: str) -> int:
        """Parsed once for each distinct text: there are about as many as labels, and not as rows."""
        if ground_truth not in self.true_places:
            text = self.options.label_text(ground_truth)
            self.true_places[ground_truth] = self.place(parse_label(text, self.labels or []))
        return self.true_places[ground_truth]


def labels_of(run: EvaluationRun) -> list[str] | None:
    """The labels that a classification run found, None for any other run."""
    found = (run.metrics or {}).get("classification")
    return list(found["labels"]) if found else None


def parts_of(metric: Metric, scores: dict[str, Any], details: dict[str, Any]) -> tuple[float, float]:
    """What a row adds to the metric's figure; nothing when the row has no such score."""
    if metric.name not in scores:
        return 0.0, 0.0
    return metric.parts(scores[metric.name], details.get(metric.name, {}))


def read_rows_of(run: EvaluationRun) -> RunRows:
    """The rows of a completed run."""
    return RowReader(run).read()
