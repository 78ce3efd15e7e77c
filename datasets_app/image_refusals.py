"""Why an image cell gives no usable image: stable codes, a sentence for people, and what to do next."""

import re

from ftproject.core.errors import ProductError
from ftproject.engine.images import ImageError

# The engine's codes where this API is more exact or has another name.
_CODES = {"image_unreadable": "image_not_an_image", "image_too_large": "image_too_many_pixels"}
ARCHIVE_HINT = "Upload the images of these rows as a zip: POST /api/datasets/{id}/images."
_HINTS = {
    "image_url_refused": "Only public http(s) addresses are fetched; QWEN3VL_IMAGE_ALLOWED_HOSTS admits host:port.",
    "image_redirect_refused": "Give the address that the redirect should lead to; it must be public.",
    "image_not_an_image": "PNG, JPEG, WebP, GIF and BMP are taken.",
    "image_is_svg": "Convert it to PNG: vector images are not read.",
    "image_is_web_page": "Open it in a private browser window: it needs a login, or is a page around the image.",
    "image_path_unknown": ARCHIVE_HINT,
    "image_path_ambiguous": "Write the whole path of the archive, its top folder included.",
    "image_missing": ARCHIVE_HINT,
    "image_host_given_up": "Start again when the host is back.",
}
_SVG = re.compile(
    rb"\s*(?:\xef\xbb\xbf)?(?:<\?xml.{0,500}?)?(?:<!--.{0,500}?-->\s*)?(?:<!DOCTYPE svg.{0,300}?)?<svg", re.S
)
_HTML = re.compile(rb"\s*(?:\xef\xbb\xbf)?(?:<!--.{0,500}?-->\s*)?<(?:!doctype html|html|head|body)", re.S | re.I)


class ImageRefusedError(ProductError):
    """An image cell that gives no usable image; `code` is stable, `message` is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, code=code, hint=_HINTS.get(code, ""))
        self.message = message


def refusal_of(error: ImageError, data: bytes = b"") -> ImageRefusedError:
    """The engine's refusal in this API's words; `data` is what was looked at, as far as it is known."""
    if error.code == "image_unreadable":
        if _SVG.match(data[:2000]):
            return ImageRefusedError("image_is_svg", "an SVG drawing, which holds no pixels")
        if _HTML.match(data[:2000]):
            return ImageRefusedError("image_is_web_page", "a web page instead of an image")
    return ImageRefusedError(_CODES.get(error.code, error.code), error.message)
