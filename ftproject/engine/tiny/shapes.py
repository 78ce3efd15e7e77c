"""Paint the coloured shapes that the tiny Qwen3-VL's tasks and the demo's pictures are made of."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

COLORS: Mapping[str, RGB] = MappingProxyType(
    {
        "red": (220, 40, 40),
        "green": (40, 180, 60),
        "blue": (50, 80, 230),
        "yellow": (235, 215, 50),
        "white": (245, 245, 245),
        "purple": (160, 60, 200),
        "orange": (245, 140, 30),
    }
)
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")


def paint_shape(canvas: Image.Image, shape: str, center: Point, radius: float, color: RGB) -> None:
    """Paint one of `SHAPES` on `canvas`; `center` and `radius` in pixels."""
    _PAINTERS[shape](ImageDraw.Draw(canvas), center, radius, color)


def _paint_circle(draw: ImageDraw.ImageDraw, center: Point, radius: float, color: RGB) -> None:
    x, y = center
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _paint_square(draw: ImageDraw.ImageDraw, center: Point, radius: float, color: RGB) -> None:
    (x, y), half = center, radius * 0.85
    draw.rectangle((x - half, y - half, x + half, y + half), fill=color)


def _paint_triangle(draw: ImageDraw.ImageDraw, center: Point, radius: float, color: RGB) -> None:
    (x, y), low = center, radius * 0.8
    draw.polygon([(x, y - radius), (x - radius, y + low), (x + radius, y + low)], fill=color)


def _paint_diamond(draw: ImageDraw.ImageDraw, center: Point, radius: float, color: RGB) -> None:
    (x, y), half = center, radius * 0.75
    draw.polygon([(x, y - radius), (x + half, y), (x, y + radius), (x - half, y)], fill=color)


def _paint_cross(draw: ImageDraw.ImageDraw, center: Point, radius: float, color: RGB) -> None:
    (x, y), half = center, radius * 0.32
    draw.rectangle((x - radius, y - half, x + radius, y + half), fill=color)
    draw.rectangle((x - half, y - radius, x + half, y + radius), fill=color)


def _paint_star(draw: ImageDraw.ImageDraw, center: Point, radius: float, color: RGB) -> None:
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    lengths = np.where(np.arange(10) % 2 == 0, radius, radius * 0.42)
    xs, ys = center[0] + lengths * np.cos(angles), center[1] + lengths * np.sin(angles)
    draw.polygon([(float(x), float(y)) for x, y in zip(xs, ys, strict=True)], fill=color)


_PAINTERS: Mapping[str, Callable[[ImageDraw.ImageDraw, Point, float, RGB], None]] = {
    "circle": _paint_circle,
    "square": _paint_square,
    "triangle": _paint_triangle,
    "star": _paint_star,
    "cross": _paint_cross,
    "diamond": _paint_diamond,
}
