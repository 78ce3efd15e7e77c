"""From an image cell to a checked file in the content-addressed cache; every URL is fetched once."""

from pathlib import Path

from datasets_app.archive_paths import archived_image, find_archived
from datasets_app.image_cache import (
    image_path,
    known_failure,
    known_image,
    remember_failure,
    remember_image,
    store_image,
)
from datasets_app.image_refusals import ImageRefusedError, refusal_of
from datasets_app.models import Dataset
from ftproject.core.image_hosts import HostRecord
from ftproject.engine.images import ImageError, decode_data_uri, is_data_uri

__all__ = ["ImageRefusedError", "image_path", "is_path", "resolve_image"]


def resolve_image(
    cell: str,
    *,
    dataset: Dataset | None = None,
    hosts: HostRecord | None = None,
    retry_failed: bool = False,
) -> Path:
    """The cached, decodable image file of a data URI, an http(s) URL, or a path of the dataset's image archives.

    Raises ImageRefusedError. `hosts` remembers unreachable hosts for one run; `retry_failed` asks a URL again that
    failed a short while ago.
    """
    text = cell.strip()
    if is_data_uri(text):
        return _of_data_uri(text)
    if not is_path(text):
        return _of_url(text, hosts, retry_failed)
    if dataset is None or not text:
        raise ImageRefusedError("image_cell_invalid", "not an http(s) URL and not a data:image/...;base64, URI")
    found = find_archived(dataset=dataset, cells=[text])[text]
    if isinstance(found, ImageRefusedError):
        raise found
    return archived_image(text, found)


def is_path(cell: str) -> bool:
    """Whether a cell can only be a path inside an image archive."""
    return "://" not in cell[:32] and not is_data_uri(cell)


def _of_data_uri(text: str) -> Path:
    try:
        data = decode_data_uri(text)
    except ImageError as exc:
        raise refusal_of(exc) from None
    return store_image(data)


def _of_url(url: str, hosts: HostRecord | None, retry_failed: bool) -> Path:
    known = known_image(url)
    if known:
        return known
    failure = None if retry_failed else known_failure(url)
    if failure:
        raise failure
    try:
        path = _fetched(url, hosts)
    except ImageRefusedError as exc:
        remember_failure(url, exc)
        raise
    remember_image(url, path)
    return path


def _fetched(url: str, hosts: HostRecord | None) -> Path:
    from ftproject.core.fetch import fetch_image_bytes
    from ftproject.core.vetted_network import FetchError

    try:
        data = fetch_image_bytes(url, hosts=hosts)
    except FetchError as exc:
        raise ImageRefusedError(exc.code, exc.message) from None
    return store_image(data)
