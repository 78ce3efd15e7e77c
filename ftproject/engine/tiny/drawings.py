"""Draw the synthetic picture tasks that pre-train the tiny Qwen3-VL, one independent sample per index."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeVar

import numpy as np
from numpy.random import RandomState
from PIL import Image

from ftproject.engine.tiny.glyphs import LETTERS, draw_glyph
from ftproject.engine.tiny.shapes import COLORS, SHAPES, Point, paint_shape

IMAGE_SIZE = 64

# Disjoint index ranges: a picture that measures is never one that trained.
HELD_OUT_FIRST_INDEX = 0
DEMO_FIRST_INDEX = 500_000
PRETRAINING_FIRST_INDEX = 1_000_000

TaskName = Literal["letter", "shape", "color", "count", "describe", "yes_no", "same_shape"]
Relation = Literal["left of", "above"]
Option = TypeVar("Option")

PROMPTS: Mapping[TaskName, tuple[str, ...]] = MappingProxyType(
    {
        "letter": (
            "Which letter is shown?",
            "What letter is this?",
            "Read the character in the image.",
            "Name the letter. Answer with one character.",
        ),
        "shape": (
            "What shape is this?",
            "Which shape is shown in the image?",
            "Name the shape. Answer with one word.",
        ),
        "color": (
            "What color is the {shape}?",
            "Which color is the {shape}?",
            "Name the color. Answer with one word.",
        ),
        "count": (
            "How many {shapes} are there?",
            "Count the {shapes}.",
            "How many {shapes} are in the image? Answer with a number.",
        ),
        "describe": ("Describe the image.", "Describe what you see.", "What is in this image?"),
        "yes_no": (
            "Is there a {item} in the image? Answer yes or no.",
            "Does the image show a {item}?",
            "Do you see a {item}? Answer yes or no.",
        ),
        "same_shape": (
            "Do both images show the same shape? Answer yes or no.",
            "Is the shape in the two images the same?",
        ),
    }
)

# A task's weight is its count. Letters weigh most: strokes are the hardest thing to learn to see.
TASK_MIX: tuple[TaskName, ...] = (
    *("letter",) * 3,
    "shape",
    "color",
    "count",
    *("describe",) * 2,
    "yes_no",
    "same_shape",
)


@dataclass(frozen=True)
class Item:
    """One drawn object."""

    shape: str
    color: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a described picture holds: one item, or two and how the first stands to the second."""

    items: tuple[Item, ...]
    relation: Relation | None

    def caption(self) -> str:
        """The wording that the base model is pre-trained on."""
        if self.relation is None:
            return f"a {self.items[0]}"
        return f"a {self.items[0]} {self.relation} a {self.items[1]}"


@dataclass(frozen=True)
class DrawnSample:
    """One question about one or two RGB pictures of 64x64 pixels, with its answer."""

    task: TaskName
    images: tuple[Image.Image, ...]
    prompt: str
    answer: str


def draw_sample(index: int, task: TaskName | None = None) -> DrawnSample:
    """Draw sample `index`: the same index and task always give the same pixels, prompt and answer.

    `task` None lets the index choose a task in the proportions of `TASK_MIX`.
    """
    rng = RandomState(index)
    chosen: TaskName = _pick(rng, TASK_MIX) if task is None else task
    prompt = _pick(rng, PROMPTS[chosen])
    images, fields, answer = _DRAWERS[chosen](rng)
    return DrawnSample(chosen, images, prompt.format(**fields), answer)


def draw_scene(rng: RandomState) -> tuple[Image.Image, Scene]:
    """Draw one object (a quarter of the time) or two beside or above each other."""
    if rng.rand() < 0.25:
        image, item = _draw_single(rng)
        return image, Scene((item,), None)
    return _draw_pair(rng)


def _pick(rng: RandomState, options: Sequence[Option]) -> Option:
    return options[rng.randint(len(options))]


def _pick_item(rng: RandomState, shape: str | None = None) -> Item:
    return Item(shape or _pick(rng, SHAPES), _pick(rng, tuple(COLORS)))


def _blank_canvas(rng: RandomState) -> Image.Image:
    gray = int(_pick(rng, (0, 0, 10, 30)))
    return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (gray, gray, gray))


def _draw_item(rng: RandomState, canvas: Image.Image, item: Item, center: Point, radius: float) -> None:
    red, green, blue = (int(np.clip(level + rng.randint(-20, 21), 0, 255)) for level in COLORS[item.color])
    paint_shape(canvas, item.shape, center, radius, (red, green, blue))


def _draw_single(rng: RandomState, shape: str | None = None) -> tuple[Image.Image, Item]:
    canvas, item = _blank_canvas(rng), _pick_item(rng, shape)
    center = (32 + rng.uniform(-6, 6), 32 + rng.uniform(-6, 6))
    _draw_item(rng, canvas, item, center, rng.uniform(12, 26))
    return canvas, item


def _draw_pair(rng: RandomState) -> tuple[Image.Image, Scene]:
    canvas, first, second = _blank_canvas(rng), _pick_item(rng), _pick_item(rng)
    relation: Relation = "left of" if rng.rand() < 0.5 else "above"
    for item, position in ((first, 16), (second, 48)):
        across = 32 + rng.uniform(-5, 5)
        center = (position, across) if relation == "left of" else (across, position)
        _draw_item(rng, canvas, item, center, rng.uniform(9, 14))
    return canvas, Scene((first, second), relation)


# Pictures, values for the prompt's placeholders, answer.
_Drawn = tuple[tuple[Image.Image, ...], dict[str, str], str]


def _draw_letter_task(rng: RandomState) -> _Drawn:
    letter = _pick(rng, LETTERS)
    glyph = draw_glyph(rng, letter, IMAGE_SIZE)
    if rng.rand() >= 0.2:
        return (glyph.convert("RGB"),), {}, letter
    tint = np.array(_pick(rng, tuple(COLORS.values())))
    tinted = np.asarray(glyph, dtype=np.float32)[..., None] / 255 * tint
    return (Image.fromarray(tinted.astype(np.uint8)),), {}, letter


def _draw_shape_task(rng: RandomState) -> _Drawn:
    image, item = _draw_single(rng)
    return (image,), {}, item.shape


def _draw_color_task(rng: RandomState) -> _Drawn:
    image, item = _draw_single(rng)
    return (image,), {"shape": item.shape}, item.color


def _draw_count_task(rng: RandomState) -> _Drawn:
    """One to nine equal items in the cells of a 3x3 grid: the only task whose answers are digits."""
    canvas, item, count = _blank_canvas(rng), _pick_item(rng), int(rng.randint(1, 10))
    for cell in rng.permutation(9)[:count]:
        center = (
            11 + 21 * (cell % 3) + rng.uniform(-1.5, 1.5),
            11 + 21 * (cell // 3) + rng.uniform(-1.5, 1.5),
        )
        _draw_item(rng, canvas, item, center, rng.uniform(6, 9))
    plural = "crosses" if item.shape == "cross" else f"{item.shape}s"
    return (canvas,), {"shapes": plural}, str(count)


def _draw_describe_task(rng: RandomState) -> _Drawn:
    image, scene = draw_scene(rng)
    return (image,), {}, scene.caption()


def _draw_yes_no_task(rng: RandomState) -> _Drawn:
    if rng.rand() < 0.5:
        image, single = _draw_single(rng)
        present: tuple[Item, ...] = (single,)
    else:
        image, scene = _draw_pair(rng)
        present = scene.items
    asked = _pick(rng, present) if rng.rand() < 0.5 else _pick_absent_item(rng, present)
    return (image,), {"item": str(asked)}, "yes" if asked in present else "no"


def _pick_absent_item(rng: RandomState, present: Sequence[Item]) -> Item:
    while True:
        item = _pick_item(rng)
        if item not in present:
            return item


def _draw_same_shape_task(rng: RandomState) -> _Drawn:
    first_image, first = _draw_single(rng)
    shape = first.shape if rng.rand() < 0.5 else _pick(rng, SHAPES)
    second_image, _ = _draw_single(rng, shape)
    return (first_image, second_image), {}, "yes" if shape == first.shape else "no"


_DRAWERS: Mapping[TaskName, Callable[[RandomState], _Drawn]] = {
    "letter": _draw_letter_task,
    "shape": _draw_shape_task,
    "color": _draw_color_task,
    "count": _draw_count_task,
    "describe": _draw_describe_task,
    "yes_no": _draw_yes_no_task,
    "same_shape": _draw_same_shape_task,
}
