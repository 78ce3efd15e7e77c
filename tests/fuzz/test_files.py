"""Hostile bytes as uploads and images: what is not taken is refused with its reason, and nothing else is raised."""

import base64
import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets_app.models import Dataset
from ftproject.core.storage import datasets_dir
from ftproject.engine.images import ImageError, decode_data_uri, open_image
from tests.fuzz.world import FACTOR

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]
bounded = settings(max_examples=100 * FACTOR, deadline=None, suppress_health_check=list(HealthCheck))


@cache
def image_bytes(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((24, 24)).convert("P" if kind == "GIF" else "RGB").save(buffer, kind)
    return buffer.getvalue()


@cache
def table_bytes(kind: str) -> bytes:
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.table({"prompt": ["a", "b"] * 20, "answer": ["1", "2"] * 20}), buffer)
        return buffer.getvalue()
    if kind == "jsonl":
        return b'{"prompt": "a", "answer": "1"}\n' * 20
    return b'prompt,answer\n"a, b",1\n' * 20


@st.composite
def mutated(draw: Any, originals: Any) -> bytes:
    """A sound file with bytes turned over, parts cut out, repeated or put in."""
    data = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, 6))):
        at, length = draw(st.integers(0, max(0, len(data) - 1))), draw(st.integers(1, 40))
        planted = draw(st.sampled_from([b"\0" * 8, b"\xff" * 8, b'"', b"\r", b"\xef\xbb\xbf", b"\x7f\xff\xff\xff"]))
        change = draw(st.sampled_from(["flip", "cut", "repeat", "plant"]))
        if change == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[at : at + length]
        elif change == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 20))
        else:
            data[at:at] = planted
    return bytes(data)


def opened(data: bytes) -> Image.Image | None:
    try:
        return open_image(data)
    except ImageError:
        return None


@bounded
@given(data=mutated(st.sampled_from(FORMATS).map(image_bytes)))
def test_a_damaged_image_is_read_or_refused_and_never_a_crash(data: bytes) -> None:
    image = opened(data)
    assert image is None or image.mode == "RGB"


@bounded
@given(data=st.binary(max_size=200) | st.sampled_from(FORMATS).map(lambda kind: image_bytes(kind)[:20]))
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert opened(data) is None


@bounded
@given(width=st.integers(0, 2**31), height=st.integers(0, 2**31))
def test_a_png_that_claims_any_size_is_refused_before_its_pixels_are_made(width: int, height: int) -> None:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert opened(data) is None


@bounded
@given(
    cell=st.text(max_size=40)
    | st.builds(
        "data:{}{},{}".format,
        st.sampled_from(["", "image/png", "IMAGE/PNG", "image/svg+xml", "text/html", "image/png;charset=x", ","]),
        st.sampled_from(["", ";base64", ";BASE64", ";base64;base64", ";;"]),
        st.text(max_size=20) | st.binary(max_size=40).map(lambda data: base64.b64encode(data).decode()),
    )
)
def test_a_data_uri_gives_bytes_or_its_fault(cell: str) -> None:
    try:
        found = decode_data_uri(cell)
    except ImageError as error:
        found = error.code.encode()
    assert found


@pytest.mark.slow
@settings(bounded, max_examples=60 * FACTOR)
@given(
    data=mutated(st.sampled_from(["csv", "jsonl"]).map(table_bytes)) | st.binary(max_size=80),
    name=st.sampled_from(
        ["a.csv", "a.jsonl", "a.tsv", "a", "../../a.csv", "a\u202ecsv.exe", "x" * 300 + ".csv", ".csv"]
    ),
)
def test_a_damaged_table_is_taken_or_refused_and_a_refused_one_leaves_nothing(
    data_dir: Path, transactional_db: None, data: bytes, name: str
) -> None:
    upload_and_compare(data, name)


@pytest.mark.slow
@settings(bounded, max_examples=8 * FACTOR)
@given(data=mutated(st.just("parquet").map(table_bytes)))
def test_a_damaged_parquet_file_is_taken_or_refused_and_a_refused_one_leaves_nothing(
    data_dir: Path, transactional_db: None, data: bytes
) -> None:
    upload_and_compare(data, "a.parquet")


def upload_and_compare(data: bytes, name: str) -> None:
    """Rows and files before and after: one more of each, or none."""
    before = stored()
    client = Client(HTTP_HOST="localhost", raise_request_exception=False)
    answer = client.post("/api/datasets/upload", {"file": SimpleUploadedFile(name, data)})
    assert answer.status_code in {200, 400, 413, 415}, (answer.status_code, answer.content[:300])
    if answer.status_code == 200:
        body = answer.json()
        assert body["num_rows"] > 0
        assert len(body["sample_rows"]) == min(5, body["num_rows"])
        # The same bytes a second time are the data set that is there.
        assert stored() in {before, (before[0] + 1, before[1] + 1)}
    else:
        assert answer.json()["code"]
        assert stored() == before


def stored() -> tuple[int, int]:
    return Dataset.objects.count(), len(list(datasets_dir().iterdir()))
