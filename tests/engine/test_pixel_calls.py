"""Several images in one call of the processor: the bits of one by one, and what cannot be prepared spoils no other."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ftproject.engine import pixel_cache
from ftproject.engine.backends.base import RowError
from ftproject.engine.pixel_cache import PixelCache
from ftproject.engine.processors import load_processor
from tests.engine.support import TINY

SIZES = [(64, 64), (200, 90), (33, 300), (64, 64), (640, 480), (17, 19)]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = []
    for number, (width, height) in enumerate(SIZES):
        noise = np.random.RandomState(number).randint(0, 255, (height, width, 3), dtype="uint8")
        made.append(tmp_path / f"{number}.png")
        Image.fromarray(noise).save(made[-1])
    return made


def cache() -> PixelCache:
    return PixelCache(load_processor(TINY))


def test_together_is_bit_by_bit_one_by_one(paths: list[Path]) -> None:
    import torch

    together, single = cache(), cache()
    pixels, grids = together.batch(paths)
    alone = [single.get(path) for path in paths]
    assert torch.equal(pixels, torch.cat([each for each, _ in alone]))
    assert torch.equal(grids, torch.cat([each for _, each in alone]))


def test_an_image_that_is_here_is_not_opened_again(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = cache()
    prepared.prepare(paths)
    monkeypatch.setattr(pixel_cache, "open_image", lambda path: pytest.fail(f"{path} was opened"))
    prepared.prepare(paths)
    prepared.batch(paths)


def test_a_damaged_image_is_left_to_the_batch_that_wants_it(paths: list[Path]) -> None:
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    prepared = cache()
    prepared.prepare([*paths, paths[0].with_name("gone.png")])
    assert [path in prepared for path in paths] == [True, True, False, True, True, True]
    with pytest.raises(RowError):
        prepared.batch(paths)


def test_an_image_that_the_processor_refuses_spoils_no_later_one(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_cache, "IMAGES_A_CALL", 2)
    thin = tmp_path / "thin.png"
    Image.new("RGB", (3000, 2)).save(thin)
    prepared = cache()
    prepared.prepare([thin, *paths])
    assert thin not in prepared
    assert all(path in prepared for path in paths[1:])
    assert len(prepared.get(paths[0])) == 2


def test_large_images_go_alone(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "AREA_A_CALL", 300_000)
    prepared = cache()
    calls: list[int] = []
    processor = prepared._image_processor

    def counting(*, images: list[Image.Image], return_tensors: str) -> object:
        calls.append(len(images))
        return processor(images=images, return_tensors=return_tensors)

    prepared._image_processor = counting
    prepared.prepare(paths)
    assert calls == [5, 1]
