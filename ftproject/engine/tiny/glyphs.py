"""Draw one distorted capital letter: the strokes that the tiny Qwen3-VL learns to see with."""

from functools import lru_cache

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# No digits: the demo shows what fine-tuning adds, so the base must not know one. No O: it looks like a 0.
LETTERS = "ABCDEFGHIJKLMNPQRSTUVWXYZ"

_CANVAS = 96
_CENTER = np.array([_CANVAS / 2, _CANVAS / 2])
_WARP_KNOTS = 4


def draw_glyph(rng: RandomState, letter: str, size: int) -> Image.Image:
    """Draw `letter` rotated, sheared, warped and often coarsened: a grey picture of `size` x `size` pixels.

    The coarse versions imitate the 8x8 scans that the handwritten digits of the demo are enlarged from.
    """
    glyph = _tilt(rng, _write(rng, letter))
    if rng.rand() < 0.7:
        glyph = _warp(rng, glyph)
    glyph = _crop(rng, glyph)
    if rng.rand() < 0.7:
        glyph = _coarsen(rng, glyph)
    return glyph.resize((size, size), Image.Resampling.BICUBIC)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow carries this font, so the pictures do not depend on the fonts of the machine.
    return ImageFont.load_default(size=size)


def _write(rng: RandomState, letter: str) -> Image.Image:
    image = Image.new("L", (_CANVAS, _CANVAS), 0)
    font = _font(int(rng.randint(38, 58)))
    stroke = int(rng.choice([0, 1, 1, 2, 3]))
    ImageDraw.Draw(image).text(
        (_CANVAS / 2, _CANVAS / 2), letter, fill=255, font=font, anchor="mm", stroke_width=stroke
    )
    return image


def _tilt(rng: RandomState, image: Image.Image) -> Image.Image:
    angle = np.deg2rad(rng.uniform(-18, 18))
    (scale_x, scale_y), shear = rng.uniform(0.8, 1.25, 2), rng.uniform(-0.3, 0.3)
    matrix = np.array(
        [
            [np.cos(angle) / scale_x, (-np.sin(angle) + shear) / scale_x],
            [np.sin(angle) / scale_y, np.cos(angle) / scale_y],
        ]
    )
    offset = _CENTER - matrix @ _CENTER + rng.uniform(-4, 4, 2)
    coefficients = np.column_stack([matrix, offset]).ravel().tolist()
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _warp(rng: RandomState, image: Image.Image) -> Image.Image:
    shifts = rng.uniform(-6, 6, (_WARP_KNOTS, _WARP_KNOTS, 2))
    cells = range(_WARP_KNOTS - 1)
    mesh = [_warped_cell(shifts, row, column) for row in cells for column in cells]
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _warped_cell(shifts: NDArray[np.float64], row: int, column: int) -> tuple[tuple[int, int, int, int], list[float]]:
    """One cell of the warp: its target box, and the source corners in Pillow's order (NW, SW, SE, NE)."""
    step = _CANVAS // (_WARP_KNOTS - 1)
    corners = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
    source = [float(knot * step + shifts[y, x, axis]) for y, x in corners for axis, knot in ((0, x), (1, y))]
    return (column * step, row * step, (column + 1) * step, (row + 1) * step), source


def _crop(rng: RandomState, image: Image.Image) -> Image.Image:
    tight = image.getbbox()
    if rng.rand() < 0.6 and tight is not None:
        return image.crop(tight)
    return image.crop((14, 14, 82, 82))


def _coarsen(rng: RandomState, image: Image.Image) -> Image.Image:
    side = int(rng.choice([8, 8, 8, 10, 14]))
    coarse = np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.float32)
    return Image.fromarray(np.clip(coarse * rng.uniform(1.0, 1.6), 0, 255).astype(np.uint8))
