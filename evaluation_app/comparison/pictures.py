"""The small pictures of a page's rows as data URIs: read in windows of rows, never fetched, up to a weight."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datasets_app.models import ColumnMapping, Dataset
from datasets_app.selectors import read_rows, row_mapping
from datasets_app.thumbnails import RowImage, cached_image, thumbnail
from ftproject.core.errors import NotFoundError
from ftproject.engine.conversations import RowMapping, split_image_cell

SIZE = 128
MOST_OF_A_ROW = 4
# A page of more is slow to open; the pictures of later rows are left out.
MOST_BYTES = 16 * 1024 * 1024
# Rows that are read together: reading one decodes its whole group of the table, 11 ms a row where cells hold images.
WINDOW = 1000


@dataclass(frozen=True)
class Pictures:
    """The pictures of one row, and why some are not there."""

    uris: tuple[str, ...] = ()
    reason: str = ""


class PictureStore:
    def __init__(self, dataset: Dataset, mapping: ColumnMapping) -> None:
        self.dataset, self.rules = dataset, row_mapping(mapping)
        self.bytes_left = MOST_BYTES

    def of_rows(self, indices: Sequence[int]) -> dict[int, Pictures]:
        columns = list(dict.fromkeys(self.rules.image_url_columns))
        if not columns or self.bytes_left <= 0:
            reason = "images left out: the page is large enough" if columns else ""
            return dict.fromkeys(indices, Pictures(reason=reason))
        found: dict[int, Pictures] = {}
        for window in windows(sorted(indices)):
            first, count = window[0], window[-1] - window[0] + 1
            rows = read_rows(dataset=self.dataset, start=first, count=count, columns=columns)
            found |= {index: self.of_row(images_in(rows[index - first], self.rules)) for index in window}
        return found

    def of_row(self, images: Sequence[RowImage]) -> Pictures:
        uris: list[str] = []
        reason = f"{len(images) - MOST_OF_A_ROW} more images" if len(images) > MOST_OF_A_ROW else ""
        if images and self.bytes_left <= 0:
            return Pictures(reason="images left out: the page is large enough")
        for image in images[:MOST_OF_A_ROW]:
            try:
                cached = cached_image(dataset=self.dataset, image=image)
                picture = thumbnail(cached=cached, image=image, size=SIZE)
            except NotFoundError as refusal:
                reason = refusal.detail
                continue
            self.bytes_left -= len(picture)
            uris.append(f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}")
        return Pictures(tuple(uris), reason)


def windows(indices: Sequence[int]) -> Iterator[list[int]]:
    """Ascending row numbers in pieces that span at most WINDOW rows.

    >>> list(windows([3, 900, 1002, 1003, 5000]))
    [[3, 900, 1002], [1003], [5000]]
    """
    window: list[int] = []
    for index in indices:
        if window and index - window[0] >= WINDOW:
            yield window
            window = []
        window.append(index)
    if window:
        yield window


def images_in(row: dict[str, str], rules: RowMapping) -> list[RowImage]:
    """The row's images in the order of its conversation."""
    columns = dict.fromkeys(rules.image_url_columns)
    cells = [(name, cell) for name in columns for cell in split_image_cell(row[name], rules.image_separator)]
    return [RowImage(number, name, cell) for number, (name, cell) in enumerate(cells)]
