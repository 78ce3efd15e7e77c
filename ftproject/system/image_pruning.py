"""Which files of the image cache datasets still name: by URL, by content, or by a path of an uploaded archive."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets_app.image_cache import url_entry
from datasets_app.images import is_path
from datasets_app.models import ColumnMapping, Dataset, ImageArchiveEntry
from datasets_app.selectors import iter_rows
from ftproject.core.errors import ConflictError
from ftproject.core.storage import images_dir
from ftproject.engine.conversations import split_image_cell
from ftproject.engine.images import ImageError, decode_data_uri, is_data_uri

BY_URL = "by-url"
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass
class ImagesInUse:
    """Digests as 32 bytes each: a million images take about 100 MB."""

    contents: set[bytes] = field(default_factory=set)
    urls: set[bytes] = field(default_factory=set)

    @classmethod
    def of_all_datasets(cls) -> "ImagesInUse":
        used = cls()
        digests = ImageArchiveEntry.objects.order_by().values_list("digest", flat=True).distinct()
        used.contents.update(bytes.fromhex(digest) for digest in digests.iterator())
        for dataset in Dataset.objects.all():
            used.add_dataset(dataset)
        return used

    def add_dataset(self, dataset: Dataset) -> None:
        """By every mapping it ever had; one without any may get one that names any column."""
        mappings = list(dataset.mappings.all())
        columns = sorted({column for mapping in mappings for column in mapping.image_url_columns})
        if mappings and not columns:
            return
        try:
            for _, row in iter_rows(dataset=dataset, columns=columns or None):
                for cell in row.values():
                    self.add_cell(cell, mappings)
        except ConflictError:  # its rows are gone: doctor says so
            return

    def add_cell(self, cell: str, mappings: list[ColumnMapping]) -> None:
        separators = {mapping.image_separator for mapping in mappings} or {None}
        for separator in separators:
            for text in split_image_cell(cell, separator):
                self.add_image(text.strip())

    def add_image(self, text: str) -> None:
        if is_data_uri(text):
            try:
                self.contents.add(hashlib.sha256(decode_data_uri(text)).digest())
            except ImageError:
                return
        elif text and not is_path(text):
            entry = url_entry(text)
            self.urls.add(bytes.fromhex(entry.name))
            try:
                self.contents.add(bytes.fromhex(entry.read_text("ascii")))
            except (OSError, ValueError):
                return


def prunable_images(used: ImagesInUse, before: float) -> Iterator[Path]:
    """Contents and addresses that nobody names, older than `before`: a request may just have fetched a young one."""
    for path in images_dir().rglob("*"):
        digest = path.name.partition(".")[0]
        if not DIGEST.fullmatch(digest) or not path.is_file() or path.stat().st_mtime >= before:
            continue
        known = used.urls if BY_URL in path.parts else used.contents
        if bytes.fromhex(digest) not in known:
            yield path
