"""Prepared pixels come back bit by bit, at an eighth of their size; what cannot is kept as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.images import open_image
from ftproject.engine.pixel_cache import GreyLevels, PixelCache
from ftproject.engine.processors import load_processor
from tests.engine.support import TINY


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(TINY, min_pixels=1024, max_pixels=65536)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise of several sizes, one of them resized by the processor, one grey."""
    import numpy as np
    from PIL import Image

    folder, chance = tmp_path_factory.mktemp("noise"), np.random.default_rng(3)
    paths = []
    for place, (width, height) in enumerate([(64, 64), (320, 96), (600, 700), (33, 65)]):
        paths.append(folder / f"{place}.png")
        Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype="uint8")).save(paths[-1])
    Image.new("L", (64, 64), 77).save(folder / "grey.png")
    return [*paths, folder / "grey.png"]


def prepared(processor: Any, paths: list[Path]) -> Any:
    return processor.image_processor(images=[open_image(path) for path in paths], return_tensors="pt")


def test_a_batch_is_what_the_image_processor_makes_of_it_bit_by_bit(processor: Any, pictures: list[Path]) -> None:
    cache = PixelCache(processor)
    for _ in range(2):
        pixels, grids = cache.batch(pictures)
        expected = prepared(processor, pictures)
        assert pixels.equal(expected["pixel_values"])
        assert grids.equal(expected["image_grid_thw"])


def test_means_that_differ_by_channel_come_back_too(processor: Any, pictures: list[Path]) -> None:
    other = copy.copy(processor)
    other.image_processor = copy.deepcopy(processor.image_processor)
    other.image_processor.image_mean = [0.48145466, 0.4578275, 0.40821073]
    other.image_processor.image_std = [0.26862954, 0.26130258, 0.27577711]
    pixels, _ = PixelCache(other).batch(pictures)
    assert pixels.equal(prepared(other, pictures)["pixel_values"])


def test_a_packed_image_takes_an_eighth(processor: Any, pictures: list[Path]) -> None:
    pixels = prepared(processor, pictures[:1])["pixel_values"]
    levels = GreyLevels(processor.image_processor).pack(pixels)
    assert levels is not None
    assert levels.nbytes * 8 == pixels.nbytes


def test_pixels_between_two_levels_or_that_move_are_not_packed_and_spoil_nothing(
    processor: Any, pictures: list[Path]
) -> None:
    import torch

    packer = GreyLevels(processor.image_processor)
    between = torch.rand(16, 1536)
    assert packer.pack(between) is None
    still = prepared(processor, pictures[:1])["pixel_values"]
    moving = still.clone()
    moving[0, 256] += 2 / 255  # the second frame of the first channel
    assert packer.pack(moving) is None
    levels = packer.pack(still)
    assert levels is not None
    assert packer.unpack(levels).equal(still)


def test_packed_and_unpacked_images_share_a_batch(
    processor: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PixelCache(processor)
    pack = GreyLevels.pack
    monkeypatch.setattr(GreyLevels, "pack", lambda self, pixels: pack(self, pixels) if len(pixels) == 16 else None)
    pixels, _ = cache.batch(pictures)
    assert pixels.equal(prepared(processor, pictures)["pixel_values"])
