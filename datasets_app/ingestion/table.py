"""The stored form of a dataset: a Parquet file of text columns in small row groups, read by any range of rows."""

import errno
import json
import os
import shutil
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
# The footer takes 0.7 KB of memory for each column of each group: 440 MB for 2,000 columns in 300 groups (measured).
# Wider tables keep a row as one list of cells.
MAX_SEPARATE_COLUMNS = 64
CELLS, NAMES = "cells", b"columns"
# What other parts of the system may still write when an upload has taken its share.
FREE_RESERVE = 256 * 1024 * 1024


@dataclass(frozen=True)
class Layout:
    """A table's footer, the number of the first row of each group, and the columns of a table of lists."""

    metadata: Any
    starts: tuple[int, ...]
    listed: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        return int(self.metadata.num_rows)


def write_table(path: Path, columns: list[str], groups: Iterable[Sequence[Any]]) -> int:
    """Writes groups of columns (lists of str, or Arrow arrays) and gives the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    listed = len(columns) > MAX_SEPARATE_COLUMNS
    schema = _list_schema(columns) if listed else pa.schema([(name, pa.string()) for name in columns])
    total = 0
    # No dictionaries or statistics: nobody filters by value, and they cost more than the plain text.
    with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False, write_statistics=False) as writer:
        for group in groups:
            _leave_space(path)
            arrays = [_array(cells) for cells in group]
            table = pa.table([_lists(arrays)] if listed else arrays, schema=schema)
            writer.write_table(table, row_group_size=max(table.num_rows, 1))
            total += table.num_rows
    # Arrow keeps freed memory for itself: 112 MB after a million rows, 85 with this (measured).
    pa.default_memory_pool().release_unused()
    return total


def _leave_space(path: Path) -> None:
    if shutil.disk_usage(path.parent).free < FREE_RESERVE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _array(cells: Any) -> Any:
    import pyarrow as pa

    if isinstance(cells, pa.ChunkedArray):
        return cells.combine_chunks()
    return cells if isinstance(cells, pa.Array) else pa.array(cells, pa.string())


def _list_schema(columns: list[str]) -> Any:
    import pyarrow as pa

    return pa.schema([(CELLS, pa.list_(pa.string()))], metadata={NAMES: json.dumps(columns).encode()})


def _lists(arrays: Sequence[Any]) -> Any:
    """Columns turned into one array of rows."""
    import numpy as np
    import pyarrow as pa

    width, rows = len(arrays), len(arrays[0])
    order = np.arange(width * rows, dtype=np.int32).reshape(width, rows).T.ravel()
    offsets = np.arange(0, width * rows + 1, width, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.concat_arrays(arrays).take(pa.array(order)))


def read_rows(path: Path, start: int, count: int, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Rows start .. start+count-1 (fewer at the end), out of the groups that hold them; `columns` alone are read."""
    layout = layout_of(path)
    stop = min(start + count, layout.num_rows)
    if start >= stop:
        return []
    first, last = group_of(layout, start), group_of(layout, stop - 1)
    with opened(path, layout) as file:
        wanted = list(columns) if columns and not layout.listed else None
        table = file.read_row_groups(list(range(first, last + 1)), columns=wanted, use_threads=False)
    return _dicts(table.slice(start - layout.starts[first], stop - start), layout, columns)


def iter_rows(path: Path, limit: int, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, str]]]:
    """The first `limit` rows with their numbers, one group in memory at a time."""
    layout = layout_of(path)
    with opened(path, layout) as file:
        for group, start in enumerate(layout.starts):
            if start >= limit:
                return
            wanted = list(columns) if columns and not layout.listed else None
            table = file.read_row_group(group, columns=wanted, use_threads=False)
            yield from enumerate(_dicts(table.slice(0, limit - start), layout, columns), start=start)


def _dicts(table: Any, layout: Layout, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    if not layout.listed:
        rows: list[dict[str, str]] = table.to_pylist()
        return rows
    places = {name: place for place, name in enumerate(layout.listed) if not columns or name in columns}
    return [{name: cells[place] for name, place in places.items()} for cells in table[CELLS].to_pylist()]


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
    names = (metadata.metadata or {}).get(NAMES)
    return Layout(metadata, tuple(starts), tuple(json.loads(names)) if names else ())
