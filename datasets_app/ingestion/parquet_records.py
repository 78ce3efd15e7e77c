"""Reads an uploaded Parquet file: flat columns, every value as text, null as the empty cell, in bounded memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets_app.ingestion.lines import MAX_CELL_CHARS
from datasets_app.ingestion.refusals import check_columns, refuse, too_large
from datasets_app.ingestion.table import GROUP_CHARS, GROUP_ROWS

# A Parquet file of a kilobyte can name one long text a million times.
MAX_TEXT_BYTES = 16 * 1024**3


class ParquetRecords:
    """The columns, then the rows in groups, each group as a list of Arrow arrays."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self.file = pq.ParquetFile(path)
            self.schema = self.file.schema_arrow
            self.columns = list(self.schema.names)
            check_columns(self.columns)
            for field in self.schema:
                _check_type(field)
            # Repeated texts stay numbers until a group of bounded size is made of them.
            self.file = pq.ParquetFile(path, read_dictionary=self.columns)
        except (pa.ArrowException, OSError) as exc:
            raise refuse("malformed_parquet", f"The Parquet file cannot be read: {exc}") from None
        self.done = 0
        self.text_bytes = 0

    def groups(self) -> Iterator[list[Any]]:
        import pyarrow as pa

        try:
            for batch in self._batches():
                for part in _bounded_parts(batch):
                    self._check(part)
                    yield [_as_text(column) for column in part.columns]
        except MemoryError:
            raise
        except (pa.ArrowException, OSError) as exc:
            raise refuse("malformed_parquet", f"The Parquet file cannot be read: {exc}") from None

    def _batches(self) -> Iterator[Any]:
        for number in range(self.file.num_row_groups):
            group = self.file.metadata.row_group(number)
            row_bytes = group.total_byte_size // max(group.num_rows, 1)
            rows = max(1, min(GROUP_ROWS, GROUP_CHARS // max(row_bytes, 1)))
            yield from self.file.iter_batches(batch_size=rows, row_groups=[number], use_threads=False)

    def _check(self, part: Any) -> None:
        self.text_bytes += _text_bytes(part)
        if self.text_bytes > MAX_TEXT_BYTES:
            raise too_large(f"The cells come to more than {MAX_TEXT_BYTES // 1024**3} GB of text.")
        for name, column in zip(self.columns, part.columns, strict=True):
            self._check_cells(name, column)
        self.done += part.num_rows

    def _check_cells(self, name: str, column: Any) -> None:
        """Refuses what no other way in would take either: a huge cell, a NUL, bytes that are not UTF-8."""
        import pyarrow as pa
        import pyarrow.compute as pc

        lengths = _lengths(column)
        if lengths is None:
            return
        longest = pc.max(lengths).as_py()
        if longest is not None and longest > MAX_CELL_CHARS:
            self._refuse("cell_too_large", f"a cell is longer than {MAX_CELL_CHARS} bytes", name, lengths, longest)
        texts = column.dictionary if pa.types.is_dictionary(column.type) else column
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid:
            plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
            damaged = pa.array([_is_damaged(cell) for cell in plain.cast(pa.binary()).to_pylist()])
            self._refuse("undecodable", "the cell holds bytes that are not UTF-8", name, damaged, True)
        if pc.any(pc.match_substring(texts, "\0")).as_py():
            holds_nul = pc.match_substring(pc.cast(column, pa.string()), "\0")
            self._refuse("nul_character", "the cell holds a NUL character", name, holds_nul, True)

    def _refuse(self, code: str, message: str, column: str, facts: Any, sought: Any) -> None:
        """Names the first row for which `facts` says `sought`; a dictionary may hold texts that no row uses."""
        import pyarrow.compute as pc

        place = pc.index(facts, sought).as_py()
        if place >= 0:
            raise refuse(code, message, row=self.done + place + 1, column=column)


def _check_type(field: Any) -> None:
    import pyarrow.types as kinds

    kind = field.type.value_type if kinds.is_dictionary(field.type) else field.type
    number = (kinds.is_primitive(kind) and not kinds.is_interval(kind)) or kinds.is_decimal(kind)
    if not (_is_text(kind) or number or kinds.is_null(kind)):
        message = f"values of type {field.type} are no text"
        hint = "Only text, numbers, booleans and times are taken; images as URLs or data URIs."
        raise refuse("unsupported_column_type", message, column=field.name, hint=hint)


def _is_damaged(cell: bytes | None) -> bool:
    try:
        (cell or b"").decode()
    except UnicodeDecodeError:
        return True
    return False


def _bounded_parts(batch: Any) -> Iterator[Any]:
    """The batch in slices whose text fills at most one group, or that are a single row."""
    if batch.num_rows <= 1 or _text_bytes(batch) <= GROUP_CHARS:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _bounded_parts(batch.slice(0, half))
    yield from _bounded_parts(batch.slice(half))


def _text_bytes(batch: Any) -> int:
    import pyarrow.compute as pc

    lengths = [_lengths(column) for column in batch.columns]
    return sum(pc.sum(length).as_py() or 0 for length in lengths if length is not None)


def _lengths(column: Any) -> Any:
    """Bytes of each text, null for null, computed without writing repeated texts out; None for other kinds."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    if kinds.is_dictionary(column.type):
        inner = _lengths(column.dictionary)
        return None if inner is None else inner.take(column.indices)
    return pc.binary_length(column) if _is_text(column.type) else None


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_string(kind) or kinds.is_large_string(kind))


def _as_text(column: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.fill_null(pc.cast(column, pa.string()), "")
