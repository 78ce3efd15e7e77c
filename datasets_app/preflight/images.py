"""Images as far as they are on this disk: data URIs, archives and the cache; preflight asks the network for nothing."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets_app.archive_paths import archived_image, find_archived
from datasets_app.image_cache import known_failure, known_image
from datasets_app.images import ImageRefusedError, is_path, resolve_image
from datasets_app.models import Dataset
from ftproject.engine.backends.base import RowError
from ftproject.engine.images import is_data_uri
from ftproject.engine.token_counts import Size, image_sizes


@dataclass(frozen=True)
class KnownImage:
    """An image of the cache: its name by content, and its upright (width, height)."""

    name: str
    size: Size


@dataclass(frozen=True)
class NotFetched:
    """An image URL that nobody asked yet, or whose last failure is too old to count; `name` is the URL."""

    name: str


Outcome = KnownImage | NotFetched | ImageRefusedError


def look_up_images(*, dataset: Dataset, cells: Iterable[str]) -> dict[str, Outcome]:
    """What each image cell gives, equal cells once."""
    wanted = {cell: cell.strip() for cell in cells}
    paths = {text for text in wanted.values() if is_path(text)}
    archived = find_archived(dataset=dataset, cells=paths)
    found: dict[str, Outcome] = {}
    for text in set(wanted.values()):
        try:
            found[text] = _outcome(text, archived.get(text))
        except ImageRefusedError as exc:
            found[text] = exc
    return {cell: found[text] for cell, text in wanted.items()}


def _outcome(text: str, archived: str | ImageRefusedError | None) -> Outcome:
    if isinstance(archived, ImageRefusedError):
        return archived
    if archived is not None:
        return _known(archived_image(text, archived))
    if is_data_uri(text):
        return _known(resolve_image(text))
    path = known_image(text)
    if path is not None:
        return _known(path)
    return known_failure(text) or NotFetched(text)


def _known(path: Path) -> Outcome:
    try:
        return KnownImage(f"sha256:{path.name}", image_sizes([path])[0])
    except RowError as exc:
        return ImageRefusedError(exc.code, exc.message)
