"""Small JPEG pictures of image files, large originals decoded in a child process whose memory and crashes end there."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ftproject.engine.images import ImageError, decoded_pixels, open_image

if TYPE_CHECKING:
    from PIL import Image

MIN_SIZE, MAX_SIZE, DEFAULT_SIZE = 16, 2048, 160
QUALITY = 85
# A screenshot of 1920 x 1080 stays in process; a child costs a fifth of a second.
IN_PROCESS_PIXELS = 2_500_000
CHILD_SECONDS = 30
CHILD_MEMORY = 2 * 1024**3
PROJECT = Path(__file__).resolve().parents[2]
_TURNS = threading.BoundedSemaphore(2)
_REFUSED = 3


def make_thumbnail(data: bytes, size: int) -> bytes:
    """A JPEG of the image at most `size` pixels wide and high, upright, on white; never larger than the original.

    `data` holds a whole PNG, JPEG, WebP, GIF or BMP file. Raises ImageError as open_image does, and image_corrupt
    when the file makes its decoder crash or never end.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size {size} is not within {MIN_SIZE} and {MAX_SIZE}")
    with _TURNS:
        if decoded_pixels(data, size) <= IN_PROCESS_PIXELS:
            return render(data, size)
        return _rendered_apart(data, size)


def render(data: bytes, size: int) -> bytes:
    """make_thumbnail in this very process."""
    with open_image(data, at_least=size) as image:
        return _as_jpeg(image, size)


def _as_jpeg(image: Image.Image, size: int) -> bytes:
    image.thumbnail((size, size))
    stream = io.BytesIO()
    image.info = {}  # Pillow would write the file's EXIF, profile and comment (a place, a name) into the picture
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _rendered_apart(data: bytes, size: int) -> bytes:
    order = [sys.executable, "-m", "ftproject.engine.thumbnails", str(size)]
    try:
        done = subprocess.run(order, input=data, capture_output=True, timeout=CHILD_SECONDS, check=False, cwd=PROJECT)
    except subprocess.TimeoutExpired:
        raise ImageError("image_corrupt", f"decoding took longer than {CHILD_SECONDS} s") from None
    if done.returncode == 0:
        return done.stdout
    if done.returncode == _REFUSED:
        code, _, message = done.stderr.decode("utf-8", "replace").rpartition("\n")[2].partition(" ")
        raise ImageError(code, message)
    raise ImageError("image_corrupt", "the image made its decoder crash")


def main(size: str) -> int:
    """Entry of the child: the file on stdin, the JPEG on stdout, a refusal as `code message` on stderr."""
    resource.setrlimit(resource.RLIMIT_DATA, (CHILD_MEMORY, CHILD_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CHILD_SECONDS, CHILD_SECONDS))  # also when the server is gone
    try:
        sys.stdout.buffer.write(render(sys.stdin.buffer.read(), int(size)))
    except ImageError as error:
        sys.stderr.write(f"{error.code} {error.message}")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
