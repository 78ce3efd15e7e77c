"""Image files: five formats, a limit before decoding, upright RGB, and clear words for what is broken."""

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ftproject.engine.images import (
    ImageError,
    ImageFacts,
    decode_data_uri,
    inspect_image,
    is_data_uri,
    open_image,
)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def code_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(ImageError) as caught:
        call(*arguments)
    assert caught.value.message
    return caught.value.code


def bomb_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing: it must be refused from its header alone."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_five_formats_open_as_rgb(kind: str) -> None:
    data = encoded(Image.new("RGB", (12, 8), (250, 10, 10)), kind)
    assert inspect_image(data) == ImageFacts(12, 8, kind)
    image = open_image(data)
    assert (image.mode, image.size) == ("RGB", (12, 8))
    assert image.getpixel((5, 5))[0] > 200  # type: ignore[index]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.new(mode, (4, 4)), kind))
    assert open_image(path).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    image = Image.new("I;16", (2, 1))
    image.putpixel((0, 0), 0x8000)
    image.putpixel((1, 0), 0xFFFF)
    opened = open_image(encoded(image))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(128, 128, 128), (255, 255, 255)]


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    opened = open_image(encoded(image))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_counted_in_the_size(orientation: int) -> None:
    from PIL import ImageOps

    image = Image.new("RGB", (16, 8), "black")
    image.paste((255, 255, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", exif=exif, quality=100, subsampling=0)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    opened = open_image(data)
    assert opened.size == expected.size == (inspect_image(data).width, inspect_image(data).height)
    assert opened.tobytes() == expected.convert("RGB").tobytes()


def test_broken_exif_does_not_hide_the_picture() -> None:
    data = encoded(Image.new("RGB", (4, 4)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert open_image(data).size == (4, 4)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("call", [inspect_image, open_image])
def test_a_huge_picture_is_refused_from_its_header(call: Any) -> None:
    assert code_of(call, bomb_header(13000, 13000)) == "image_too_large"
    assert code_of(call, bomb_header(60000, 60000)) == "image_too_large"
    assert code_of(call, bomb_header(8000, 5001)) == "image_too_large"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "image_empty"),
        (b"<html>404</html>", "image_unreadable"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image_unreadable"),
        (encoded(Image.new("RGB", (4, 4)), "TIFF"), "image_unreadable"),
        (encoded(Image.effect_noise((64, 64), 50))[:2000], "image_corrupt"),
    ],
)
def test_what_is_no_usable_image_is_refused_with_its_reason(data: bytes, code: str, tmp_path: Path) -> None:
    assert code_of(open_image, data) == code


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert code_of(open_image, tmp_path / "gone.png") == "image_missing"
    assert code_of(inspect_image, tmp_path) == "image_unreadable"


def test_a_data_uri_gives_its_bytes() -> None:
    png = encoded(Image.new("RGB", (2, 2)))
    text = base64.b64encode(png).decode()
    assert decode_data_uri(f" data:image/png;base64,{text}\n") == png
    assert decode_data_uri(f"DATA:image/PNG;charset=x;BASE64,{text[:8]}\n {text[8:]}") == png
    assert is_data_uri(" Data:x")
    assert not is_data_uri("http://x/data:")


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("data:image/png;base64", "data_uri_invalid"),
        ("http://x/y.png", "data_uri_invalid"),
        ("data:text/html;base64,AAAA", "data_uri_not_image"),
        ("data:,AAAA", "data_uri_not_image"),
        ("data:image/png,AAAA", "data_uri_not_base64"),
        ("data:image/png;base64,A*AA", "data_uri_bad_base64"),
        ("data:image/png;base64,AAA", "data_uri_bad_base64"),
        ("data:image/png;base64,", "image_empty"),
    ],
)
def test_a_wrong_data_uri_is_refused_with_its_reason(uri: str, code: str) -> None:
    assert code_of(decode_data_uri, uri) == code
