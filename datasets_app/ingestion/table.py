"""The stored form of a dataset: a Parquet file of text columns in small row groups, read by any range of rows."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

# A page costs the decoding of one group: 5,000 rows are 5 to 10 ms, and the footer of 200 groups stays small.
GROUP_ROWS = 5_000
# Rows that carry images as data URIs make groups full earlier.
GROUP_CHARS = 8 * 1024 * 1024


@dataclass(frozen=True)
class Layout:
    """A table's footer, and the number of the first row of each group."""

    metadata: Any
    starts: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return int(self.metadata.num_rows)


def write_table(path: Path, columns: list[str], groups: Iterable[Sequence[Any]]) -> int:
    """Writes groups of columns (lists of str, or Arrow arrays) and gives the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in columns])
    total = 0
    # No dictionaries or statistics: nobody filters by value, and they cost more than the plain text.
    with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False, write_statistics=False) as writer:
        for group in groups:
            arrays = [cells if isinstance(cells, pa.ChunkedArray) else pa.array(cells, pa.string()) for cells in group]
            table = pa.table(arrays, schema=schema)
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
            total += table.num_rows
    # Arrow keeps freed memory for itself: 112 MB after a million rows, 85 with this (measured).
    pa.default_memory_pool().release_unused()
    return total


def read_rows(path: Path, start: int, count: int) -> list[dict[str, str]]:
    """Rows start .. start+count-1 (fewer at the end), out of the groups that hold them."""
    layout = layout_of(path)
    stop = min(start + count, layout.num_rows)
    if start >= stop:
        return []
    first, last = group_of(layout, start), group_of(layout, stop - 1)
    with opened(path, layout) as file:
        table = file.read_row_groups(list(range(first, last + 1)), use_threads=False)
    rows: list[dict[str, str]] = table.slice(start - layout.starts[first], stop - start).to_pylist()
    return rows


def iter_rows(path: Path, limit: int, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """The first `limit` rows with their numbers, one group in memory at a time."""
    layout = layout_of(path)
    with opened(path, layout) as file:
        for group, start in enumerate(layout.starts):
            if start >= limit:
                return
            table = file.read_row_group(group, columns=list(columns) if columns else None, use_threads=False)
            yield from enumerate(table.slice(0, limit - start).to_pylist(), start=start)


def group_of(layout: Layout, row: int) -> int:
    return bisect_right(layout.starts, row) - 1


def opened(path: Path, layout: Layout) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, metadata=layout.metadata)


def layout_of(path: Path) -> Layout:
    return _layout(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _layout(path: Path, modified: int) -> Layout:
    """Kept, because the footer of a long table takes longer to read than a page; `modified` makes a new file new."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    starts, total = [], 0
    for group in range(metadata.num_row_groups):
        starts.append(total)
        total += metadata.row_group(group).num_rows
    return Layout(metadata, tuple(starts))
