"""The content-addressed image files on disk, and what is known of each URL: its image, or how it last failed."""

import hashlib
import json
import threading
import time
from pathlib import Path

from django.conf import settings

from datasets_app.image_refusals import ImageRefusedError, refusal_of
from ftproject.core.storage import images_dir, partial_path
from ftproject.engine.images import ImageError, open_image

# One image of 40 million pixels takes 160 MB while it is decoded.
_DECODING = threading.BoundedSemaphore(2)
# Refused by rule, at no cost, and the rules can change; or not even tried.
NOT_REMEMBERED = frozenset({"image_url_refused", "image_host_given_up"})
FAILED = ".failed"


def image_path(digest: str) -> Path:
    return images_dir() / digest[:2] / digest


def store_image(data: bytes) -> Path:
    """The cached file with these bytes; raises ImageRefusedError when they are no image.

    A file in the cache has been decoded once: a damaged image is refused here and not in the middle of a run.
    """
    path = image_path(hashlib.sha256(data).hexdigest())
    if not holds(path, data):
        check_image(data)
        write_image(path, data)
    return path


def check_image(data: bytes) -> None:
    """Decodes it; raises ImageRefusedError."""
    try:
        with _DECODING:
            open_image(data).close()
    except ImageError as exc:
        raise refusal_of(exc, data) from None


def holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def intact_image(digest: str) -> Path | None:
    """Nothing here was fsynced (two syncs an image cost more than the image), so contents prove themselves."""
    path = image_path(digest)
    try:
        return path if hashlib.sha256(path.read_bytes()).hexdigest() == digest else None
    except OSError:
        return None


def known_image(url: str) -> Path | None:
    """The image that this URL gave before."""
    try:
        digest = url_entry(url).read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return intact_image(digest) if len(digest) == 64 else None


def known_failure(url: str) -> ImageRefusedError | None:
    """How this URL failed within the last IMAGE_RETRY_SECONDS."""
    try:
        failure = json.loads(_failed_entry(url).read_bytes())
        age = time.time() - float(failure["at"])
        if 0 <= age < settings.IMAGE_RETRY_SECONDS:
            return ImageRefusedError(str(failure["code"]), str(failure["message"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def remember_image(url: str, path: Path) -> None:
    write_image(url_entry(url), path.name.encode())
    _failed_entry(url).unlink(missing_ok=True)


def remember_failure(url: str, refusal: ImageRefusedError) -> None:
    if refusal.code in NOT_REMEMBERED or not settings.IMAGE_RETRY_SECONDS:
        return
    failure = {"code": refusal.code, "message": refusal.message, "at": time.time()}
    write_image(_failed_entry(url), json.dumps(failure).encode())


def write_image(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def url_entry(url: str) -> Path:
    digest = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    return images_dir() / "by-url" / digest[:2] / digest


def _failed_entry(url: str) -> Path:
    entry = url_entry(url)
    return entry.with_name(entry.name + FAILED)
