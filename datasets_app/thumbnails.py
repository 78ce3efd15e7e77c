"""The images of one dataset row as small pictures, out of the row itself, the cache or an archive: never fetched."""

import hashlib
from dataclasses import dataclass

from datasets_app.archive_paths import archived_image, find_archived
from datasets_app.image_cache import known_failure, known_image
from datasets_app.image_refusals import ARCHIVE_HINT, ImageRefusedError, refusal_of
from datasets_app.images import is_path
from datasets_app.models import ColumnMapping, Dataset
from datasets_app.selectors import get_mapping, read_rows, row_mapping
from ftproject.core.errors import NotFoundError, Problem
from ftproject.engine.conversations import split_image_cell
from ftproject.engine.images import ImageError, decode_data_uri, is_data_uri
from ftproject.engine.thumbnails import make_thumbnail

# Part of every ETag: a change of how pictures are made makes the browsers' copies old.
RENDERING = 1
PREFETCH_HINT = "Fetch the images into the cache: POST /api/datasets/images/prefetch."


@dataclass(frozen=True)
class RowImage:
    """One image of a row: its place among all images of the row, counted from 0, as training sees them."""

    number: int
    column: str
    cell: str


@dataclass(frozen=True)
class CachedImage:
    data: bytes
    digest: str

    def etag(self, size: int) -> str:
        return f'"{RENDERING}-{self.digest[:32]}-{size}"'


def mapping_version(*, dataset: Dataset, version: int | None) -> ColumnMapping:
    """The newest mapping, or the one with which a run was made."""
    if version is None:
        return get_mapping(dataset=dataset)
    mapping = dataset.mappings.filter(version=version).first()
    if mapping is None:
        raise NotFoundError(
            f"Dataset {dataset.pk} has no mapping version {version}.",
            code="mapping_not_found",
            hint="Leave mapping_version out for the newest one.",
        )
    return mapping


def images_of_row(*, dataset: Dataset, mapping: ColumnMapping, index: int) -> list[RowImage]:
    """The row's images in the order of its conversation; reads no other column."""
    rules = row_mapping(mapping)
    columns = list(dict.fromkeys(rules.image_url_columns))
    if not 0 <= index < dataset.num_rows:
        raise NotFoundError(
            f"Dataset {dataset.pk} has no row {index}.",
            code="row_not_found",
            hint=f"Rows are counted from 0 to {dataset.num_rows - 1}.",
        )
    rows = read_rows(dataset=dataset, start=index, count=1, columns=columns) if columns else []
    cells = [
        (name, cell) for row in rows for name in columns for cell in split_image_cell(row[name], rules.image_separator)
    ]
    return [RowImage(number, name, cell) for number, (name, cell) in enumerate(cells)]


def image_of_row(*, dataset: Dataset, mapping: ColumnMapping, index: int, number: int) -> RowImage:
    images = images_of_row(dataset=dataset, mapping=mapping, index=index)
    if number >= len(images):
        have = f"images 0 to {len(images) - 1}" if images else "no image"
        raise NotFoundError(
            f"Row {index} of dataset {dataset.pk} has {have}, no image {number}.",
            code="image_not_found",
            hint=f"GET /api/datasets/{dataset.pk}/rows/{index}/images lists them.",
        )
    return images[number]


def cached_image(*, dataset: Dataset, image: RowImage) -> CachedImage:
    """The file of an image cell; raises NotFoundError with the reason when it is not on this machine."""
    try:
        data = _bytes_of(dataset, image.cell.strip())
    except ImageRefusedError as exc:
        raise _unavailable(exc, image) from None
    return CachedImage(data, hashlib.sha256(data).hexdigest())


def _bytes_of(dataset: Dataset, text: str) -> bytes:
    if is_data_uri(text):
        try:
            return decode_data_uri(text)
        except ImageError as exc:
            raise refusal_of(exc) from None
    if is_path(text):
        found = find_archived(dataset=dataset, cells=[text])[text]
        if isinstance(found, ImageRefusedError):
            raise found
        return archived_image(text, found).read_bytes()
    path = known_image(text)
    if path is None:
        raise known_failure(text) or ImageRefusedError("image_not_fetched", "this URL was not fetched yet")
    return path.read_bytes()


def thumbnail(*, cached: CachedImage, image: RowImage, size: int) -> bytes:
    """A JPEG at most `size` pixels wide and high; what cannot be decoded is not there either."""
    try:
        return make_thumbnail(cached.data, size)
    except ImageError as exc:
        raise _unavailable(refusal_of(exc, cached.data), image) from None


def _unavailable(refusal: ImageRefusedError, image: RowImage) -> NotFoundError:
    """404 with what is known of the image; of a data URI there is nothing that a prefetch could better."""
    inside = is_data_uri(image.cell)
    hint = refusal.hint or ("Correct the cell and upload the table again." if inside else PREFETCH_HINT)
    if is_path(image.cell):
        hint = refusal.hint or ARCHIVE_HINT
    return NotFoundError(
        f"Image {image.number} (column {image.column!r}) cannot be shown: {refusal.message}.",
        code="image_unusable" if inside else "image_not_cached",
        hint=hint,
        errors=[Problem(refusal.code, refusal.message, column=image.column)],
    )


def thumbnail_url(*, dataset_id: int, index: int, number: int, version: int, size: int | None = None) -> str:
    """The path of one picture under the mapping with which a run was made."""
    shown = f"size={size}&" if size else ""
    return f"/api/datasets/{dataset_id}/rows/{index}/images/{number}?{shown}mapping_version={version}"
