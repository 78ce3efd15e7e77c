"""Image cells into cached files: fetched once, content-addressed, and refused when they hold no usable image."""

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datasets_app.images import ImageRefusedError, image_path, resolve_image
from tests.core.image_server import ImageServer, in_turn, response


def png(color: str = "red", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, kind)
    return stream.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def refused(cell: str) -> ImageRefusedError:
    with pytest.raises(ImageRefusedError) as caught:
        resolve_image(cell)
    return caught.value


@pytest.fixture
def server(settings: Any) -> Iterator[ImageServer]:
    with ImageServer() as running:
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{running.port}"]
        yield running


def test_a_data_uri_becomes_a_file_named_by_its_content(own_data_dir: Path) -> None:
    path = resolve_image(data_uri(png()))
    assert path.read_bytes() == png()
    assert path == image_path(path.name)
    assert path.is_relative_to(own_data_dir / "images")


def test_equal_images_are_one_file(own_data_dir: Path) -> None:
    assert resolve_image(data_uri(png())) == resolve_image("  " + data_uri(png(), "image/x-whatever") + "\n")
    assert sum(path.is_file() for path in (own_data_dir / "images").rglob("*")) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_five_formats_are_taken(kind: str) -> None:
    assert resolve_image(data_uri(png(kind=kind))).exists()


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("", "image_cell_invalid"),
        ("cat.png", "image_cell_invalid"),
        ("/etc/passwd", "image_cell_invalid"),
        ("../../etc/passwd", "image_cell_invalid"),
        ("file:///etc/passwd", "image_url_refused"),
        ("http://127.0.0.1/cat.png", "image_url_refused"),
        ("https://169.254.169.254/", "image_url_refused"),
        ("data:text/plain;base64,QUJD", "data_uri_not_image"),
        ("data:image/png,QUJD", "data_uri_not_base64"),
        ("data:image/png;base64,###", "data_uri_bad_base64"),
        ("data:image/png;base64,", "image_empty"),
        ("data:", "data_uri_invalid"),
        (data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "image_is_svg"),
        (data_uri(b"no image at all"), "image_not_an_image"),
        (data_uri(png(kind="TIFF"), "image/tiff"), "image_not_an_image"),
        (data_uri(png(size=(200, 200))[:-30]), "image_corrupt"),
    ],
)
def test_a_cell_without_a_usable_image_is_refused_with_its_code(cell: str, code: str, own_data_dir: Path) -> None:
    error = refused(cell)
    assert error.code == code
    assert error.status == 400
    assert error.message
    assert not [path for path in own_data_dir.rglob("*") if path.is_file()]


def test_a_small_file_of_many_pixels_is_refused() -> None:
    stream = io.BytesIO()
    Image.new("1", (9000, 9000)).save(stream, "PNG")
    assert refused(data_uri(stream.getvalue())).code == "image_too_many_pixels"


def test_a_url_is_fetched_once(server: ImageServer) -> None:
    server.answers["/cat.png"] = response(png())
    first = resolve_image(server.url("/cat.png"))
    assert resolve_image(server.url("/cat.png")) == first
    assert server.paths() == ["/cat.png"]


def test_two_urls_of_one_image_share_the_file(server: ImageServer) -> None:
    server.answers |= {"/a.png": response(png()), "/b.png": response(png())}
    assert resolve_image(server.url("/a.png")) == resolve_image(server.url("/b.png"))


def test_a_cached_file_that_was_damaged_is_fetched_again(server: ImageServer) -> None:
    server.answers["/cat.png"] = response(png())
    path = resolve_image(server.url("/cat.png"))
    path.write_bytes(b"")
    assert resolve_image(server.url("/cat.png")).read_bytes() == png()
    assert len(server.requests) == 2


@pytest.fixture
def gone_then_back(server: ImageServer) -> str:
    server.answers["/cat.png"] = in_turn(response(b"", "404 Not Found"), response(png()))
    return server.url("/cat.png")


def test_a_failed_url_is_not_asked_again_for_a_while(server: ImageServer, gone_then_back: str) -> None:
    assert refused(gone_then_back).code == "image_fetch_failed"
    again = refused(gone_then_back)
    assert (again.code, "404" in again.message) == ("image_fetch_failed", True)
    assert len(server.requests) == 1


def test_a_failed_url_is_asked_again_after_the_time_set(gone_then_back: str, settings: Any) -> None:
    settings.IMAGE_RETRY_SECONDS = 1
    refused(gone_then_back)
    time.sleep(1.05)
    assert resolve_image(gone_then_back).exists()


def test_a_failed_url_is_asked_again_at_once_when_that_is_wished(gone_then_back: str) -> None:
    refused(gone_then_back)
    assert resolve_image(gone_then_back, retry_failed=True).exists()
    assert resolve_image(gone_then_back).exists()


def test_with_zero_seconds_no_failure_is_remembered(gone_then_back: str, settings: Any) -> None:
    settings.IMAGE_RETRY_SECONDS = 0
    refused(gone_then_back)
    assert resolve_image(gone_then_back).exists()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"at": "x"}', b"\xff", b'{"at": 9e99, "code": "a", "message": "b"}']
)
def test_a_damaged_memory_of_a_failure_is_no_failure(gone_then_back: str, content: bytes, own_data_dir: Path) -> None:
    refused(gone_then_back)
    [entry] = (own_data_dir / "images" / "by-url").rglob("*.failed")
    entry.write_bytes(content)
    assert resolve_image(gone_then_back).exists()
    assert not entry.exists()


def test_a_refused_address_is_judged_anew_because_the_allow_list_may_have_changed(
    server: ImageServer, settings: Any
) -> None:
    server.answers["/cat.png"] = response(png())
    allowed, settings.IMAGE_ALLOWED_HOSTS = settings.IMAGE_ALLOWED_HOSTS, []
    assert refused(server.url("/cat.png")).code == "image_url_refused"
    settings.IMAGE_ALLOWED_HOSTS = allowed
    assert resolve_image(server.url("/cat.png")).exists()


def test_a_web_page_behind_an_image_url_is_refused(server: ImageServer) -> None:
    server.answers["/cat.png"] = response(b"<html>log in first</html>", Content_Type="image/png")
    error = refused(server.url("/cat.png"))
    assert error.code == "image_is_web_page"
    assert "login" in error.hint
