"""Thumbnails: small upright JPEGs of whatever can be decoded, large or hostile files in a child process."""

import io
import resource
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from ftproject.engine import thumbnails
from ftproject.engine.images import ImageError, decoded_pixels, open_image
from ftproject.engine.thumbnails import IN_PROCESS_PIXELS, main, make_thumbnail


def encoded(kind: str = "PNG", size: tuple[int, int] = (400, 200), mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, "red").save(stream, kind, **options)
    return stream.getvalue()


def shown(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose header announces any size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_every_format_becomes_a_jpeg_that_fits(kind: str) -> None:
    image = shown(make_thumbnail(encoded(kind), 100))
    assert (image.format, image.size, image.mode) == ("JPEG", (100, 50), "RGB")


def test_a_picture_is_never_made_larger() -> None:
    assert shown(make_thumbnail(encoded(size=(28, 20)), 160)).size == (28, 20)


def test_transparency_is_laid_on_white_and_orientation_is_undone() -> None:
    clear = shown(make_thumbnail(encoded(mode="RGBA", size=(40, 40)), 40))
    assert clear.size == (40, 40)
    stream = io.BytesIO()
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(stream, "PNG")
    assert shown(make_thumbnail(stream.getvalue(), 40)).getpixel((20, 20)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert shown(make_thumbnail(encoded("JPEG", (400, 200), exif=exif), 100)).size == (50, 100)


def test_what_the_file_says_about_its_maker_is_left_out() -> None:
    exif = Image.Exif()
    exif[0x013B] = "Somebody, at home"
    made = make_thumbnail(encoded("JPEG", exif=exif, comment=b"secret place"), 100)
    assert b"Somebody" not in made
    assert b"secret place" not in made


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "image_empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "image_unreadable"),
        (b"<html><script>alert(1)</script></html>", "image_unreadable"),
        (encoded("TIFF"), "image_unreadable"),
        (encoded(size=(300, 300))[:-40], "image_corrupt"),
        (bomb(40_000, 40_000), "image_too_large"),
        (bomb(6_000, 6_000), "image_corrupt"),
    ],
    ids=["empty", "svg", "html", "tiff", "cut off", "bomb over the limit", "bomb below the limit"],
)
def test_what_is_no_picture_is_refused_by_code(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        make_thumbnail(data, 160)
    assert caught.value.code == code


@pytest.mark.parametrize("size", [0, 15, 2049, -1])
def test_a_size_out_of_range_is_the_callers_mistake(size: int) -> None:
    with pytest.raises(ValueError, match="not within"):
        make_thumbnail(encoded(), size)


def test_a_large_jpeg_is_decoded_at_an_eighth_and_a_progressive_one_is_counted_whole() -> None:
    plain = encoded("JPEG", (4000, 3000))
    assert decoded_pixels(plain, 160) == 500 * 375
    assert decoded_pixels(encoded("JPEG", (4000, 3000), progressive=True), 160) == 12_000_000
    assert decoded_pixels(encoded("PNG", (100, 100), "RGBA"), 160) == 2 * decoded_pixels(
        encoded("PNG", (100, 100)), 160
    )
    assert open_image(plain, at_least=160).size == (500, 375)
    assert open_image(plain).size == (4000, 3000)


def test_a_large_picture_is_made_in_a_child_process_and_looks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(size=(2000, 1500))
    assert decoded_pixels(data, 160) > IN_PROCESS_PIXELS
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    apart = make_thumbnail(data, 160)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > before
    monkeypatch.setattr(thumbnails, "IN_PROCESS_PIXELS", 10**9)
    assert make_thumbnail(data, 160) == apart


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "image_corrupt", "crash"),
        ("import sys; sys.exit(1)", "image_corrupt", "crash"),
        ("import time; time.sleep(60)", "image_corrupt", "longer than"),
        ("import sys; sys.stderr.write('image_too_large 9 x 9 is too much'); sys.exit(3)", "image_too_large", "9 x 9"),
    ],
    ids=["segmentation fault", "traceback", "endless", "refused"],
)
def test_a_child_that_does_not_come_back_with_a_picture_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, code: str, message: str
) -> None:
    # The child's own program is the waist: what it does to itself is what a hostile file would do.
    program = tmp_path / "child"
    program.write_text(f"#!{sys.executable}\n{source}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(thumbnails, "CHILD_SECONDS", 2)
    with pytest.raises(ImageError, match=message) as caught:
        make_thumbnail(encoded(size=(2000, 1500)), 160)
    assert caught.value.code == code


def test_the_child_tells_a_refusal_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"nothing")))
    monkeypatch.setattr(resource, "setrlimit", lambda *limits: None)  # the limits would stay with the tests
    assert main("160") == 3
    assert capsys.readouterr().err.startswith("image_unreadable ")
