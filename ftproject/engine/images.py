"""Opens image files and data URIs safely: five formats, a pixel limit before decoding, upright RGB out."""

from __future__ import annotations

import base64
import binascii
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# Pillow opens 43 formats; EPS would start Ghostscript and FITS had CVE-2026-40192, so the list is closed.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# A 20 kB PNG of 13000 x 13000 took 822 MB with Pillow's own limit, which only warns (measured).
MAX_PIXELS = 40_000_000
ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<params>(?:;[\w.+=-]+)*),", re.IGNORECASE)


class ImageError(ValueError):
    """An image that cannot be used; `code` is stable, `message` is for people."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


@dataclass(frozen=True)
class ImageFacts:
    """Size in pixels once turned upright, and Pillow's name of the format."""

    width: int
    height: int
    format: str


def inspect_image(source: bytes | Path) -> ImageFacts:
    """Format and size from the header, nothing decoded; raises ImageError as open_image does."""
    with _open_checked(source) as image:
        width, height = image.size
        if _orientation(image) in SIDEWAYS:
            width, height = height, width
        return ImageFacts(width, height, str(image.format))


def decoded_pixels(source: bytes | Path, at_least: int) -> int:
    """How many pixels `open_image(source, at_least=...)` would decode, those of a transparent image counted twice.

    It is laid on white in a second layer: 24 pictures of 1500 x 1500 at two a time took 114 MB, opaque ones 50 MB
    (measured). Raises ImageError as open_image does.
    """
    with _open_checked(source) as image:
        # libjpeg keeps the coefficients of a whole progressive file, however small it is decoded.
        if "progressive" not in image.info:
            image.draft(None, (at_least, at_least))
        return image.width * image.height * (2 if image.has_transparency_data else 1)


def open_image(source: bytes | Path, *, at_least: int | None = None) -> Image.Image:
    """The decoded image: RGB, turned upright by its EXIF orientation, transparency laid on white.

    Of an animation, the first frame. With `at_least` a JPEG may be decoded at a half, a quarter or an eighth, no side
    below that many pixels: 40 million pixels then take 2 MB instead of 160. Raises ImageError: image_missing,
    image_empty, image_unreadable, image_too_large, image_corrupt.
    """
    with _open_checked(source) as image:
        orientation = _orientation(image)
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        try:
            image.load()
            return _upright(_on_white(image), orientation)
        except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
            raise ImageError("image_corrupt", f"the image is damaged: {error}") from error


def _open_checked(source: bytes | Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, bytes):
        if not source:
            raise ImageError("image_empty", "the image has no bytes")
        stream: io.BytesIO | Path = io.BytesIO(source)
    else:
        stream = source
    try:
        image = Image.open(stream, formats=FORMATS)
    except FileNotFoundError as error:
        raise ImageError("image_missing", "the image file does not exist") from error
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", f"the image is larger than {MAX_PIXELS:,} pixels") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        names = ", ".join(FORMATS)
        raise ImageError("image_unreadable", f"not an image of the formats {names}") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        message = f"{image.width} x {image.height} is larger than {MAX_PIXELS:,} pixels"
        raise ImageError("image_too_large", message)
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8, from what stands before the pixels: asking a PNG for more would decode it."""
    if "exif" not in image.info:
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF raises what its bytes happen to lead to
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image

    turn = Image.Transpose
    turns = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip 16-bit grey to white; scale it down to 8 bits.
        image = image.point(lambda value: value / 256, "F").convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(ground, layer).convert("RGB")


def is_data_uri(cell: str) -> bool:
    """Whether an image cell carries its image inside."""
    return cell.lstrip()[:5].lower() == "data:"


def decode_data_uri(cell: str) -> bytes:
    """The bytes of a `data:image/...;base64,` URI; raises ImageError with what is wrong with it."""
    text = cell.strip()
    head = _DATA_URI.match(text)
    if head is None:
        raise ImageError("data_uri_invalid", "not a data URI of the form data:image/png;base64,...")
    kind = (head["type"] or "").lower()
    if not kind.startswith("image/"):
        raise ImageError("data_uri_not_image", f"the data URI holds {kind or 'text/plain'}, not an image")
    if ";base64" not in head["params"].lower():
        raise ImageError("data_uri_not_base64", "the data URI is not base64 encoded")
    payload = re.sub(r"\s+", "", text[head.end() :])
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("data_uri_bad_base64", "the base64 text of the data URI is damaged") from error
    if not data:
        raise ImageError("image_empty", "the data URI holds no bytes")
    return data
