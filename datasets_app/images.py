"""From an image cell to a checked file in the content-addressed cache; every URL is fetched once."""

import hashlib
import threading
from pathlib import Path

from ftproject.core.errors import ProductError
from ftproject.core.storage import images_dir, partial_path
from ftproject.engine.images import ImageError, decode_data_uri, is_data_uri, open_image

# One image of 40 million pixels takes 160 MB while it is decoded.
_DECODING = threading.BoundedSemaphore(2)
_CODES = {"image_unreadable": "image_not_an_image"}
_HINTS = {
    "image_url_refused": "Only public http(s) addresses are fetched; QWEN3VL_IMAGE_ALLOWED_HOSTS admits host:port.",
    "image_not_an_image": "PNG, JPEG, WebP, GIF and BMP are taken.",
}


class ImageRefusedError(ProductError):
    """An image cell that gives no usable image; `code` is stable, `message` is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, code=code, hint=_HINTS.get(code, ""))
        self.message = message


def resolve_image(cell: str) -> Path:
    """The cached, decodable image file of a data URI or an http(s) URL; raises ImageRefusedError."""
    text = cell.strip()
    try:
        if is_data_uri(text):
            return _cached(decode_data_uri(text))
    except ImageError as exc:
        raise _refused(exc) from None
    if "://" not in text[:32]:
        raise ImageRefusedError("image_cell_invalid", "not an http(s) URL and not a data:image/...;base64, URI")
    return _of_url(text)


def image_path(digest: str) -> Path:
    return images_dir() / digest[:2] / digest


def _of_url(url: str) -> Path:
    from ftproject.core.fetch import fetch_image_bytes
    from ftproject.core.vetted_network import FetchError

    entry = _url_entry(url)
    known = _known_path(entry)
    if known:
        return known
    try:
        path = _cached(fetch_image_bytes(url))
    except FetchError as exc:
        raise ImageRefusedError(exc.code, exc.message) from None
    except ImageError as exc:
        raise _refused(exc) from None
    _write(entry, path.name.encode())
    return path


def _url_entry(url: str) -> Path:
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    return images_dir() / "by-url" / digest[:2] / digest


def _known_path(entry: Path) -> Path | None:
    """Nothing here was fsynced (two syncs an image cost more than the image), so contents prove themselves."""
    try:
        digest = entry.read_text("ascii")
        path = image_path(digest)
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return path
    except (OSError, UnicodeDecodeError):
        pass
    return None


def _cached(data: bytes) -> Path:
    """A file in the cache has been decoded once: a damaged image is refused here and not in the middle of a run."""
    path = image_path(hashlib.sha256(data).hexdigest())
    try:
        if path.read_bytes() == data:
            return path
    except OSError:
        pass
    with _DECODING:
        open_image(data).close()
    _write(path, data)
    return path


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _refused(error: ImageError) -> ImageRefusedError:
    return ImageRefusedError(_CODES.get(error.code, error.code), error.message)
