"""Rows of several runs over one dataset side by side: the dataset's columns, each model's results, what changed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation_app.comparison.judged import PairedRuns
from evaluation_app.comparison.loading import UNKNOWN
from evaluation_app.exports import Cells, free_name, iter_row_samples
from evaluation_app.models import EvaluationRun, Sample
from ftproject.engine.metrics import ALWAYS_SCORED

TRANSITION, SEEN = "transition", "seen_in_training"


class TransitionCursor:
    """Walks the pairs of one comparison beside the dataset's rows."""

    def __init__(self, paired: PairedRuns) -> None:
        pairs = paired.pairs
        self.told = zip(pairs.index.tolist(), pairs.transitions(), pairs.seen.tolist(), strict=True)
        self.following = next(self.told, None)

    def take(self, index: int) -> tuple[str | None, bool | None]:
        """Transition and seen of this row, nothing when it could not be paired; ask in ascending order."""
        if self.following is None or self.following[0] != index:
            return None, None
        _, transition, seen = self.following
        self.following = next(self.told, None)
        return transition, None if seen == UNKNOWN else bool(seen)


class JoinedRows:
    """The rows that any of the runs covers, in dataset order. A name that the dataset has already gets `_eval`.

    `compared` are candidates by name; their transition has a column, with their name behind it when there are several.
    """

    def __init__(
        self,
        runs: Mapping[str, EvaluationRun],
        compared: Mapping[str, PairedRuns] | None = None,
        *,
        transition: str | None = None,
    ) -> None:
        self.runs, self.compared, self.transition = list(runs.values()), compared or {}, transition
        self.originals: Sequence[str] = self.runs[0].dataset.columns
        self.fields = fields_of(self.runs)
        self.index = free_name("index", self.originals)
        self.columns = {
            name: {field: free_name(f"{field}_{name}", self.originals) for field in self.fields} for name in runs
        }
        self.told = {name: self.change_columns(name) for name in self.compared}

    def change_columns(self, name: str) -> dict[str, str]:
        behind = f"_{name}" if len(self.compared) > 1 else ""
        return {what: free_name(what + behind, self.originals) for what in (TRANSITION, SEEN)}

    def names(self) -> dict[str, Any]:
        """Which column holds what."""
        return {"index": self.index, "models": self.columns, "changes": self.told}

    def header(self) -> list[str]:
        results = [columns[field] for field in self.fields for columns in self.columns.values()]
        changes = [column for columns in self.told.values() for column in columns.values()]
        return [self.index, *self.originals, *results, *changes]

    def __iter__(self) -> Iterator[Cells]:
        cursors = [TransitionCursor(paired) for paired in self.compared.values()]
        for row, samples in iter_row_samples(self.runs):
            index = next(sample.index for sample in samples if sample)
            told = [cursor.take(index) for cursor in cursors]
            if self.transition is None or any(transition == self.transition for transition, _ in told):
                yield {self.index: index, **row, **self.results(samples), **self.changes(told)}

    def results(self, samples: Sequence[Sample | None]) -> Cells:
        return {
            name: value_of(sample, field)
            for columns, sample in zip(self.columns.values(), samples, strict=True)
            for field, name in columns.items()
        }

    def changes(self, told: Sequence[tuple[str | None, bool | None]]) -> Cells:
        pairs = zip(self.told.values(), told, strict=True)
        return {name: value for names, values in pairs for name, value in zip(names.values(), values, strict=True)}


def fields_of(runs: Sequence[EvaluationRun]) -> list[str]:
    """What is shown of each model's sample: answer, label in classification, scores, and why it was skipped."""
    named = (entry["name"] for run in runs for entry in run.metric_options.get("metrics", []))
    labels = ["label"] if any(run.eval_mode == run.EvalMode.CLASSIFICATION for run in runs) else []
    return ["prediction", *labels, *ALWAYS_SCORED, *dict.fromkeys(named), "skipped_reason"]


def value_of(sample: Sample | None, field: str) -> Any:
    if sample is None:
        return None
    return getattr(sample, field) if hasattr(sample, field) else sample.scores.get(field)
