"""Rows of several runs over one dataset side by side: the dataset's columns, each model's results, what changed."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from datasets_app.selectors import iter_rows
from evaluation_app.comparison.judged import PairedRuns
from evaluation_app.comparison.loading import UNKNOWN
from evaluation_app.export_rows import check_whole, iter_values
from evaluation_app.exports import free_name
from evaluation_app.models import EvaluationRun
from ftproject.engine.metrics import ALWAYS_SCORED

TRANSITION, SEEN = "transition", "seen_in_training"
# Results that are columns of a sample; the others lie in its `scores`.
STORED = frozenset({"prediction", "label", *ALWAYS_SCORED, "skipped_reason"})


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

    def __iter__(self) -> Iterator[list[Any]]:
        """Lists in the order of the header: dictionaries would cost a third more time for a long table."""
        models = [ResultCursor(run, self.fields) for run in self.runs]
        changes = [TransitionCursor(paired) for paired in self.compared.values()]
        for index, row in iter_rows(dataset=self.runs[0].dataset):
            if all(model.following is None for model in models):
                break
            results = [model.take(index) for model in models]
            if not any(results):
                continue
            told = [change.take(index) for change in changes]
            if self.transition is None or any(transition == self.transition for transition, _ in told):
                yield [index, *row.values(), *self.side_by_side(results), *chain.from_iterable(told)]
        for model in models:
            check_whole(model.run, model.taken)

    def side_by_side(self, results: Sequence[list[Any] | None]) -> Iterator[Any]:
        """All models' answers, then all their labels, and so on."""
        nothing = [None] * len(self.fields)
        return chain.from_iterable(zip(*(result or nothing for result in results), strict=True))


def fields_of(runs: Sequence[EvaluationRun]) -> list[str]:
    """What is shown of each model's sample: answer, label in classification, scores, and why it was skipped."""
    named = (entry["name"] for run in runs for entry in run.metric_options.get("metrics", []))
    labels = ["label"] if any(run.eval_mode == run.EvalMode.CLASSIFICATION for run in runs) else []
    return ["prediction", *labels, *ALWAYS_SCORED, *dict.fromkeys(named), "skipped_reason"]


class ResultCursor:
    """Walks one run's results beside the dataset's rows."""

    def __init__(self, run: EvaluationRun, fields: Sequence[str]) -> None:
        self.run, self.fields, self.taken = run, fields, 0
        self.stored = [name for name in fields if name in STORED]
        named = len(self.stored) < len(fields)
        self.samples = iter_values(run, [*self.stored, "scores"] if named else self.stored)
        self.following = next(self.samples, None)

    def take(self, index: int) -> list[Any] | None:
        """The results of this row, if the run has it; rows must be asked for in ascending order."""
        values = self.following
        if values is None or values[0] != index:
            return None
        self.following, self.taken = next(self.samples, None), self.taken + 1
        if len(values) - 1 == len(self.fields) == len(self.stored):
            return list(values[1:])
        known = dict(zip(self.stored, values[1:], strict=False))
        return [known[name] if name in known else values[-1].get(name) for name in self.fields]
