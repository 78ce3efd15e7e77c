"""Which rows of the dataset a run covers, and which of them its adapter was trained on."""

from collections.abc import Container, Mapping, Sequence

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun
from evaluation_app.row_ranges import RowRanges
from ftproject.core.errors import InvalidInputError
from training_app.models import Adapter


def split_applies(*, adapter: Adapter | None, dataset: Dataset) -> bool:
    """Row numbers of a split mean something only in the very dataset that the adapter was trained on."""
    return adapter is not None and adapter.run is not None and adapter.run.dataset.sha256 == dataset.sha256


def rows_in_scope(run: EvaluationRun) -> Sequence[int]:
    """The row numbers of the run, ascending: the first `sample_limit` of those that `rows` names."""
    if run.rows == EvaluationRun.Rows.ALL:
        return range(min(run.sample_limit or run.dataset.num_rows, run.dataset.num_rows))
    return _split_rows(run)


def _split_rows(run: EvaluationRun) -> RowRanges:
    adapter = run.split_adapter
    if adapter is None or adapter.run is None or not split_applies(adapter=adapter, dataset=run.dataset):
        raise _no_split(run)
    heldout = run.rows == EvaluationRun.Rows.HELDOUT
    numbers = RowRanges(adapter.run.heldout_rows if heldout else adapter.run.trained_rows, run.sample_limit)
    if not numbers:
        raise InvalidInputError(
            f"Adapter {adapter.name!r} has no {run.rows} rows.",
            code=f"no_{run.rows}_rows",
            hint="Train with holdout_fraction above 0 (0.2, say) to keep rows out of training, or use rows=all.",
        )
    return numbers


def _no_split(run: EvaluationRun) -> InvalidInputError:
    adapter = run.split_adapter
    if adapter is None:
        detail = f"rows={run.rows} needs an adapter whose split it refers to."
    else:
        detail = f"Adapter {adapter.name!r} has no split of dataset {run.dataset_id} ({run.dataset.filename})."
    return InvalidInputError(
        detail,
        code="no_split",
        hint="Name an adapter that was trained on this dataset in adapter_path (or split_adapter for the base model), "
        "or use rows=all.",
    )


def seen_rows(run: EvaluationRun) -> Container[int] | None:
    """The rows that training saw, or None when that cannot be told."""
    adapter = run.split_adapter
    if adapter is None or adapter.run is None or not split_applies(adapter=adapter, dataset=run.dataset):
        return None
    return RowRanges(adapter.run.trained_rows)


def scope_warning(runs: Mapping[str, EvaluationRun]) -> str | None:
    """What to know of a table whose models were asked about different rows; None when the rows are the same."""
    scopes = {name: set(rows_in_scope(run)) for name, run in runs.items()}
    common = set.intersection(*scopes.values())
    if all(scope == common for scope in scopes.values()):
        return None
    counts = ", ".join(f"{name} {len(scope)}" for name, scope in scopes.items())
    return (
        f"The models were asked about different rows ({counts}; {len(common)} in common): each adapter has its own "
        "split, and their figures do not stand side by side. A comparison pairs the common rows; --rows all asks all."
    )
