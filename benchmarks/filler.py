"""Fills a disk up to a given rest, and empties it again."""

import os
import shutil
from pathlib import Path


class Filler:
    """Takes all space but `left` bytes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "filler"

    def fill(self, left: int) -> None:
        free = shutil.disk_usage(self.path.parent).free
        with self.path.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, free - left))

    def empty(self) -> None:
        self.path.unlink(missing_ok=True)
