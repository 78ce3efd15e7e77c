"""Prepared pixels of image files, kept at an eighth of their size without losing a bit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.engine.backends.base import RowError
from ftproject.engine.images import ImageError, open_image

PIXEL_CACHE_BYTES = 256 * 1024 * 1024
LEVELS = 256
# Images that are decoded at once; a photograph of 12 million pixels goes alone.
IMAGES_A_CALL = 32
AREA_A_CALL = 4_000_000


@dataclass(frozen=True)
class PreparedImage:
    """One image as model input: its grid of shape (1, 3) and its pixels, as grey levels where they are exact.

    `pixels` has shape (patches, channels, 1, area) in uint8, or (patches, patch size) as the image processor made it.
    """

    pixels: Any
    grid: Any

    @property
    def packed(self) -> bool:
        return int(self.pixels.dim()) == 4

    @property
    def nbytes(self) -> int:
        return int(self.pixels.nbytes)


class GreyLevels:
    """Packs normalised pixels into the 256 grey levels that they came from, and back to the same floats.

    An image processor resizes to whole levels, normalises each channel and repeats a still image `temporal_patch_size`
    times: 8 bytes for one. The table of a channel is learnt from the images and every image is compared before it is
    packed: one that the table does not give back bit by bit stays as it is.
    """

    def __init__(self, image_processor: Any) -> None:
        import torch

        self._mean = list(image_processor.image_mean)
        self._repeats = int(image_processor.temporal_patch_size)
        self._scale = torch.tensor(image_processor.image_std).view(-1, 1, 1) * (LEVELS - 1)
        self._shift = torch.tensor(self._mean).view(-1, 1, 1) * (LEVELS - 1)
        self._table = torch.full((len(self._mean), LEVELS), torch.nan)

    def pack(self, pixels: Any) -> Any | None:
        """The levels of pixels of shape (patches, patch size), or None where they would not come back the same."""
        import torch

        still = pixels.view(len(pixels), len(self._mean), self._repeats, -1)[:, :, :1]
        levels = (still * self._scale + self._shift).round_().clamp_(0, LEVELS - 1).to(torch.uint8)
        if torch.equal(self._looked_up(levels, self._table), pixels):
            return levels
        table = self._learnt(still, levels)
        if torch.equal(self._looked_up(levels, table), pixels):
            self._table = table
            return levels
        return None

    def _learnt(self, still: Any, levels: Any) -> Any:
        """The table with the levels that it did not know yet."""
        table = self._table.clone()
        for channel, known in enumerate(self._table):
            table[channel, levels[:, channel].flatten().long()] = still[:, channel].flatten()
            table[channel] = known.where(~known.isnan(), table[channel])
        return table

    def unpack(self, levels: Any) -> Any:
        """Pixels of shape (patches, patch size) from levels of shape (patches, channels, 1, area)."""
        return self._looked_up(levels, self._table)

    def _looked_up(self, levels: Any, table: Any) -> Any:
        import torch

        patches, channels, _, area = levels.shape
        offsets = torch.arange(0, channels * LEVELS, LEVELS, dtype=torch.int32).view(-1, 1, 1)
        places = (levels + offsets).flatten()
        still = table.flatten().index_select(0, places).view(patches, channels, 1, area)
        return still.expand(-1, -1, self._repeats, -1).reshape(patches, -1)


class PixelCache:
    """Prepared pixels per image file, the least recently used dropped beyond a size; safe between threads.

    A training of several epochs, and base beside fine-tuned in evaluation, decode and resize each image once: the
    preparation was 15 % of a training step and 20 to 25 % of an evaluation (measured).
    """

    def __init__(self, processor: Any, max_bytes: int = PIXEL_CACHE_BYTES) -> None:
        self._image_processor = processor.image_processor
        self._levels = GreyLevels(self._image_processor)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[Path, PreparedImage] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, path: Path) -> bool:
        return path in self._entries

    def get(self, path: Path) -> tuple[Any, Any]:
        """Pixels of shape (patches, patch size) and the grid of shape (1, 3); raises RowError."""
        return self.batch([path])

    def batch(self, paths: Sequence[Path]) -> tuple[Any, Any]:
        """The pixels of several images one after the other, and their grids of shape (images, 3); raises RowError."""
        import torch

        if len(paths) > 1:
            self.prepare(paths)
        images = [self._entry(path) for path in paths]
        grids = torch.cat([image.grid for image in images])
        if all(image.packed for image in images):
            return self._levels.unpack(torch.cat([image.pixels for image in images])), grids
        parts = [self._levels.unpack(image.pixels) if image.packed else image.pixels for image in images]
        return torch.cat(parts), grids

    def prepare(self, paths: Sequence[Path]) -> None:
        """Prepares images that are not here yet, several in a call: half of what a small image costs is the call.

        One that cannot be prepared, and those beside it, are left to `batch`, which says why.
        """
        missing = [path for path in dict.fromkeys(paths) if path not in self]
        for names, images in _opened(missing):
            try:
                features = self._image_processor(images=images, return_tensors="pt")
            except ValueError:
                continue
            grids = features["image_grid_thw"]
            parts = features["pixel_values"].split(grids.prod(dim=-1).tolist())
            for path, pixels, grid in zip(names, parts, grids.split(1), strict=True):
                self._keep(path, pixels, grid)

    def _entry(self, path: Path) -> PreparedImage:
        with self._lock:
            if path in self._entries:
                self._entries.move_to_end(path)
                return self._entries[path]
        return self._keep(path, *self._prepare(path))

    def _keep(self, path: Path, pixels: Any, grid: Any) -> PreparedImage:
        with self._lock:
            levels = self._levels.pack(pixels)
            # Cloned: a part of a larger tensor would keep all of that in memory.
            image = PreparedImage(pixels.clone() if levels is None else levels, grid.clone())
            if path not in self._entries:
                self._entries[path] = image
                self._bytes += image.nbytes
            while self._bytes > self._max_bytes and self._entries:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes
        return image

    def _prepare(self, path: Path) -> tuple[Any, Any]:
        try:
            features = self._image_processor(images=[open_image(path)], return_tensors="pt")
        except ImageError as error:
            raise RowError(error.code, error.message) from error
        return features["pixel_values"], features["image_grid_thw"]


def _opened(paths: Sequence[Path]) -> Iterator[tuple[list[Path], list[Any]]]:
    """Decoded images by the handful, without those that cannot be opened."""
    names: list[Path] = []
    images: list[Any] = []
    area = 0
    for path in paths:
        try:
            image = open_image(path)
        except ImageError:
            continue
        names.append(path)
        images.append(image)
        area += image.width * image.height
        if len(images) >= IMAGES_A_CALL or area >= AREA_A_CALL:
            yield names, images
            names, images, area = [], [], 0
    if images:
        yield names, images
