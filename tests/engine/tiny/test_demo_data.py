"""The committed demo CSVs and tiny model: complete, decodable, and what their scripts make."""

import base64
import csv
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ftproject.engine
from ftproject.engine.tiny.demo_data import (
    DIGITS_PROMPT,
    SHAPES_PROMPT,
    SHAPES_ROWS,
    Row,
    digit_rows,
    enlarge_scan,
    shape_rows,
    write_demo_csvs,
)

ASSETS = Path(ftproject.engine.__path__[0]) / "assets"


def read_csv(name: str) -> list[dict[str, str]]:
    with (ASSETS / "demo" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def decode(uri: str) -> Image.Image:
    head, _, payload = uri.partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))
    image.load()
    return image


@pytest.fixture(scope="module")
def digits() -> list[dict[str, str]]:
    return read_csv("digits.csv")


@pytest.fixture(scope="module")
def shapes() -> list[dict[str, str]]:
    return read_csv("shapes.csv")


def test_digits_hold_every_scan_once_with_all_ten_labels(digits: list[dict[str, str]]) -> None:
    assert list(digits[0]) == ["id", "prompt", "image", "answer"]
    assert len(digits) == 1797
    assert len({row["id"] for row in digits}) == 1797
    assert {row["answer"] for row in digits} == set("0123456789")
    assert {row["prompt"] for row in digits} == {DIGITS_PROMPT}


def test_every_digit_image_decodes_to_a_grey_picture_of_64_pixels(digits: list[dict[str, str]]) -> None:
    pictures = [decode(row["image"]) for row in digits]

    assert {(picture.mode, picture.size) for picture in pictures} == {("L", (64, 64))}
    assert len({picture.tobytes() for picture in pictures}) == 1797


def test_digits_are_shuffled_so_that_the_first_hundred_rows_hold_every_label(
    digits: list[dict[str, str]],
) -> None:
    assert {row["answer"] for row in digits[:100]} == set("0123456789")
    assert [row["id"] for row in digits] != sorted(row["id"] for row in digits)


def test_committed_digits_are_what_the_script_makes(digits: list[dict[str, str]]) -> None:
    for committed, made in itertools.islice(zip(digits, digit_rows(), strict=True), 25):
        assert_same_row(committed, made)


def test_committed_shapes_are_what_the_script_makes(shapes: list[dict[str, str]]) -> None:
    for committed, made in zip(shapes[:25], shape_rows(25), strict=True):
        assert_same_row(committed, made)


def test_every_shape_row_decodes_and_speaks_in_the_demos_wording(shapes: list[dict[str, str]]) -> None:
    assert list(shapes[0]) == ["prompt", "image", "answer"]
    assert len(shapes) == SHAPES_ROWS
    assert {row["prompt"] for row in shapes} == {SHAPES_PROMPT}
    assert {(decode(row["image"]).mode, decode(row["image"]).size) for row in shapes} == {("RGB", (64, 64))}
    assert all(row["answer"].startswith("I see the ") for row in shapes)
    assert len({row["image"] for row in shapes}) == SHAPES_ROWS


@pytest.mark.parametrize("name", ["digits.csv", "shapes.csv"])
def test_a_demo_csv_is_utf8_with_lf_and_of_modest_size(name: str) -> None:
    raw = (ASSETS / "demo" / name).read_bytes()

    raw.decode("utf-8")
    assert b"\r" not in raw
    assert raw.endswith(b"\n")
    assert len(raw) < 2_000_000


def test_enlarging_keeps_the_darkest_and_the_brightest_point() -> None:
    scan = np.zeros((8, 8))
    scan[2:6, 2:6] = 16

    picture = np.asarray(enlarge_scan(scan))

    assert picture.shape == (64, 64)
    assert (picture[0, 0], picture[32, 32]) == (0, 255)
    assert set(np.unique(picture)) <= set(range(0, 256, 17))


def test_writing_replaces_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / "digits.csv").write_text("old")

    write_demo_csvs(tmp_path)

    for name in ("digits.csv", "shapes.csv"):
        assert (tmp_path / name).read_bytes().count(b"\n") == (ASSETS / "demo" / name).read_bytes().count(b"\n")


def test_the_committed_model_is_a_qwen3_vl_of_under_three_megabytes_with_its_card() -> None:
    folder = ASSETS / "tiny-qwen3-vl"
    config = json.loads((folder / "config.json").read_text())

    assert config["architectures"] == ["Qwen3VLForConditionalGeneration"]
    assert (folder / "model.safetensors").stat().st_size < 3_000_000
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\n")


@pytest.mark.parametrize(("folder", "licence"), [("demo", "CC BY 4.0"), ("tiny-qwen3-vl", "real digits")])
def test_the_readme_beside_an_asset_says_what_it_must(folder: str, licence: str) -> None:
    assert licence in (ASSETS / folder / "README.md").read_text(encoding="utf-8")


def assert_same_row(committed: Row, made: Row) -> None:
    # Pixels, not bytes: another zlib may pack the same picture differently.
    assert decode(committed["image"]).tobytes() == decode(made["image"]).tobytes()
    assert {**committed, "image": ""} == {**made, "image": ""}
