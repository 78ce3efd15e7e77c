"""Lines of text from a file in bounded memory, split at CR, LF and CRLF only, line ends kept."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from datasets_app.ingestion.refusals import refuse

# A 20 MB image is 27 million characters as a data URI; a cell may hold two.
MAX_CELL_CHARS = 64 * 1024 * 1024
BLOCK_CHARS = 1 << 20


class _CountedFile(io.FileIO):
    """Stops a single line that would otherwise be gathered in memory whole, however long it is."""

    unclaimed = 0

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        count = super().readinto(buffer)
        self.unclaimed += count or 0
        if self.unclaimed > 4 * MAX_CELL_CHARS:
            raise refuse("line_too_long", "A line is longer than can be read; perhaps this is not a CSV.")
        return count


class Lines:
    """An iterator of lines; `chars` tells how much has been read so far, to the next block."""

    def __init__(self, path: Path, encoding: str, errors: str) -> None:
        self.file = _CountedFile(path)
        buffered = io.BufferedReader(self.file, buffer_size=BLOCK_CHARS)
        # newline="" leaves line ends as they are: inside quotes they belong to the cell.
        self.text = io.TextIOWrapper(buffered, encoding=encoding, errors=errors, newline="")
        self.chars = 0

    def __iter__(self) -> Iterator[str]:
        while block := self.text.readlines(BLOCK_CHARS):
            self.file.unclaimed = 0
            self.chars += sum(map(len, block))
            yield from block

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.text.close()
