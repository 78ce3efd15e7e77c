"""Reads of datasets, mappings and rows."""

from collections.abc import Iterator, Sequence
from typing import Any

from datasets_app.ingestion import table
from datasets_app.models import ColumnMapping, Dataset
from datasets_app.suggestions import suggest_mapping
from ftproject.core.errors import ConflictError, NotFoundError
from ftproject.engine.conversations import Conversation, RowMapping, build_conversation

UPLOAD_HINT = "Upload a CSV first: POST /api/datasets/upload."
SAMPLE_ROWS = 5
SUGGESTION_ROWS = 50


def list_datasets() -> list[Dataset]:
    return list(Dataset.objects.all())


def current_dataset() -> Dataset | None:
    return Dataset.objects.filter(is_current=True).first()


def get_dataset(*, dataset_id: int | None) -> Dataset:
    """The dataset of that id, or the current one; 404 when there is none."""
    if dataset_id is None:
        dataset = current_dataset()
        if dataset is None:
            raise NotFoundError("No dataset is loaded.", code="dataset_not_loaded", hint=UPLOAD_HINT)
        return dataset
    found = Dataset.objects.filter(pk=dataset_id).first()
    if found is None:
        detail = f"There is no dataset {dataset_id}."
        raise NotFoundError(detail, code="dataset_not_found", hint="See GET /api/datasets/ for all of them.")
    return found


def current_mapping(*, dataset: Dataset) -> ColumnMapping | None:
    return dataset.mappings.order_by("-version").first()


def get_mapping(*, dataset: Dataset) -> ColumnMapping:
    """The newest version of the dataset's mapping; 404 with a suggestion when none was set."""
    mapping = current_mapping(dataset=dataset)
    if mapping is None:
        raise NotFoundError("No column mapping is set for this dataset.", **_mapping_missing(dataset))
    return mapping


def require_ready_dataset(*, dataset_id: int | None) -> tuple[Dataset, ColumnMapping]:
    """What a run needs; an unknown explicit id is 404, a missing current dataset or mapping is 409."""
    dataset = current_dataset() if dataset_id is None else get_dataset(dataset_id=dataset_id)
    if dataset is None:
        raise ConflictError("No dataset is loaded.", code="dataset_not_loaded", hint=UPLOAD_HINT)
    mapping = current_mapping(dataset=dataset)
    if mapping is None:
        raise ConflictError("No column mapping is set for this dataset.", **_mapping_missing(dataset))
    return dataset, mapping


def suggestion_for(*, dataset: Dataset) -> dict[str, object] | None:
    """A mapping guessed from the column names and the first rows, or None when nothing can be guessed."""
    return suggest_mapping(list(dataset.columns), read_rows(dataset=dataset, start=0, count=SUGGESTION_ROWS))


def read_rows(
    *, dataset: Dataset, start: int, count: int, columns: Sequence[str] | None = None
) -> list[dict[str, str]]:
    """Rows start .. start+count-1 in dataset order, fewer at the end; reads only the groups that hold them."""
    try:
        return table.read_rows(dataset.table_path, start, count, columns)
    except FileNotFoundError:
        raise _table_missing(dataset) from None


def iter_rows(
    *, dataset: Dataset, limit: int | None = None, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells of each row from the top, in bounded memory; `columns` leaves the others unread."""
    wanted = dataset.num_rows if limit is None else min(limit, dataset.num_rows)
    try:
        yield from table.iter_rows(dataset.table_path, wanted, columns)
    except FileNotFoundError:
        raise _table_missing(dataset) from None


def mapped_columns(mapping: ColumnMapping) -> list[str]:
    """The columns that a run reads; the others may be large."""
    named = [mapping.prompt_column, mapping.response_column, mapping.ground_truth_column]
    return list(dict.fromkeys([name for name in named if name] + mapping.image_url_columns + mapping.mandatory_columns))


def row_mapping(mapping: ColumnMapping) -> RowMapping:
    """The mapping as the engine takes it."""
    return RowMapping(
        prompt_column=mapping.prompt_column,
        response_column=mapping.response_column,
        ground_truth_column=mapping.ground_truth_column,
        image_url_columns=tuple(mapping.image_url_columns),
        image_separator=mapping.image_separator,
        mandatory_columns=tuple(mapping.mandatory_columns),
    )


def read_conversations(*, dataset: Dataset, mapping: ColumnMapping, start: int, count: int) -> list[Conversation]:
    """Rows as the conversations that training and evaluation see."""
    rules = row_mapping(mapping)
    rows = read_rows(dataset=dataset, start=start, count=count)
    return [build_conversation(index, row, rules) for index, row in enumerate(rows, start=start)]


def _mapping_missing(dataset: Dataset) -> dict[str, Any]:
    suggestion = suggestion_for(dataset=dataset)
    guess = " The suggestion beside this was guessed from your columns." if suggestion else ""
    return {
        "code": "mapping_not_set",
        "hint": f"Set it with POST /api/datasets/mapping.{guess}",
        "extra": {"suggestion": suggestion},
    }


def _table_missing(dataset: Dataset) -> ConflictError:
    return ConflictError(
        f"The rows of {dataset.filename!r} are gone from the data directory.",
        code="dataset_file_missing",
        hint="Upload the same file again; it takes its old place.",
    )
