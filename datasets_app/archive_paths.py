"""Paths of image archives: one spelling for members and cells, and where a cell's path leads."""

import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from django.db.models import Q

from datasets_app.image_cache import intact_image
from datasets_app.image_refusals import ImageRefusedError
from datasets_app.models import Dataset, ImageArchiveEntry

MAX_PATH = 1024
# SQLite's oldest limit of variables in a statement is 999; a cell takes two.
LOOKUP_BATCH = 400

Found = str | ImageRefusedError
Item = TypeVar("Item")


def normalised_path(text: str) -> str:
    """Forward slashes, no empty or "." parts, Unicode NFC (macOS archives are NFD, tables are not); case stays."""
    parts = unicodedata.normalize("NFC", text).replace("\\", "/").split("/")
    lead = "/" if parts[0] == "" and len(parts) > 1 else ""  # an absolute path stays one, and is never a member's
    return lead + "/".join(part for part in parts if part not in {"", "."})


def path_key(path: str) -> str:
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()


def find_archived(*, dataset: Dataset, cells: Collection[str]) -> dict[str, Found]:
    """For each cell the digest of its image, or why there is none; a query per LOOKUP_BATCH cells."""
    found: dict[str, Found] = {}
    for batch in batches(cells, LOOKUP_BATCH):
        keys = {cell: path_key(normalised_path(cell)) for cell in batch}
        exact, short = _entries(dataset, set(keys.values()))
        for cell, key in keys.items():
            found[cell] = exact.get(key) or _only(cell, short.get(key, set()))
    return found


def archived_image(cell: str, digest: str) -> Path:
    path = intact_image(digest)
    if path is None:
        raise ImageRefusedError("image_missing", f"the image {_shown(cell)} of the archive is gone from the cache")
    return path


def _entries(dataset: Dataset, keys: set[str]) -> tuple[dict[str, str], dict[str, set[str]]]:
    exact: dict[str, str] = {}
    short: dict[str, set[str]] = {}
    rows = ImageArchiveEntry.objects.filter(Q(key__in=keys) | Q(short_key__in=keys), dataset=dataset)
    for key, short_key, digest in rows.values_list("key", "short_key", "digest"):
        exact[key] = digest
        short.setdefault(short_key, set()).add(digest)
    return exact, short


def _only(cell: str, digests: set[str]) -> Found:
    if len(digests) == 1:
        return next(iter(digests))
    if digests:
        message = f"{_shown(cell)} stands in several archives of this dataset with different contents"
        return ImageRefusedError("image_path_ambiguous", message)
    message = f"{_shown(cell)} is no URL, and no path of an image archive of this dataset"
    return ImageRefusedError("image_path_unknown", message)


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= 200 else f"{cell[:200]}…")


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
