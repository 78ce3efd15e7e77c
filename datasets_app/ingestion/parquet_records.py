"""Reads an uploaded Parquet file: flat columns, every value as text, null as the empty cell."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets_app.ingestion.refusals import check_columns, refuse
from datasets_app.ingestion.table import GROUP_ROWS


class ParquetRecords:
    """The columns, then the rows in groups, each group as a list of Arrow arrays."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self.file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as exc:
            raise refuse("malformed_parquet", f"The Parquet file cannot be read: {exc}") from None
        self.schema = self.file.schema_arrow
        self.columns = list(self.schema.names)
        check_columns(self.columns)
        for field in self.schema:
            _check_type(field)

    def groups(self) -> Iterator[list[Any]]:
        import pyarrow as pa

        try:
            for batch in self.file.iter_batches(batch_size=GROUP_ROWS, use_threads=False):
                yield [_as_text(column) for column in batch.columns]
        except (pa.ArrowException, OSError) as exc:
            raise refuse("malformed_parquet", f"The Parquet file cannot be read: {exc}") from None


def _check_type(field: Any) -> None:
    import pyarrow.types as kinds

    kind = field.type.value_type if kinds.is_dictionary(field.type) else field.type
    if (
        kinds.is_nested(kind)
        or kinds.is_binary(kind)
        or kinds.is_large_binary(kind)
        or kinds.is_fixed_size_binary(kind)
    ):
        message = f"values of type {field.type} are no text"
        hint = "Only text, numbers, booleans and times are taken; images as URLs or data URIs."
        raise refuse("unsupported_column_type", message, column=field.name, hint=hint)


def _as_text(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.fill_null(pc.cast(column, pa.string()), "")
