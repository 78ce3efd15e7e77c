"""Make the demo CSVs, real digits and drawn shapes: `python -m ftproject.engine.tiny.demo_data FOLDER`."""

import argparse
import base64
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image

from ftproject.engine.tiny.drawings import DEMO_FIRST_INDEX, IMAGE_SIZE, Scene, draw_scene

DIGITS_PROMPT = "Which digit is shown in the image?"
SHAPES_PROMPT = "Describe the image."
SHAPES_ROWS = 700

Row = Mapping[str, str]
_SHUFFLE_SEED = 0
_GRAY_STEP = 17
_RELATION_WORDING = {"left of": "to the left of", "above": "on top of"}


def digit_rows() -> Iterator[Row]:
    """All 1,797 scans of scikit-learn's digits, in a fixed shuffled order.

    Source: UCI, Optical Recognition of Handwritten Digits (CC BY 4.0). `id` carries the scan's
    position there.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    for source in RandomState(_SHUFFLE_SEED).permutation(len(digits.images)):
        yield {
            "id": f"digit-{source:04d}",
            "prompt": DIGITS_PROMPT,
            "image": png_data_uri(enlarge_scan(digits.images[source])),
            "answer": str(digits.target[source]),
        }


def shape_rows(count: int = SHAPES_ROWS) -> Iterator[Row]:
    """`count` drawn scenes, captioned in a wording that the base model does not use: something to learn."""
    for index in range(DEMO_FIRST_INDEX, DEMO_FIRST_INDEX + count):
        image, scene = draw_scene(RandomState(index))
        yield {"prompt": SHAPES_PROMPT, "image": png_data_uri(image), "answer": spoken_caption(scene)}


def enlarge_scan(scan: NDArray[np.float64]) -> Image.Image:
    """Enlarge an 8x8 scan (0..16) to a 64x64 grey picture (bicubic), rounded to 16 grey levels.

    The scan itself has 17 levels; the smooth steps that enlarging adds would make the CSV twice as large.
    """
    coarse = Image.fromarray(np.clip(scan * 16, 0, 255).astype(np.uint8))
    smooth = np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), dtype=np.float64)
    return Image.fromarray((np.round(smooth / _GRAY_STEP) * _GRAY_STEP).astype(np.uint8))


def spoken_caption(scene: Scene) -> str:
    """The demo's wording of a scene, such as "I see the red circle to the left of the blue square"."""
    if scene.relation is None:
        return f"I see the {scene.items[0]}"
    return f"I see the {scene.items[0]} {_RELATION_WORDING[scene.relation]} the {scene.items[1]}"


def png_data_uri(image: Image.Image) -> str:
    """The picture as `data:image/png;base64,...`."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def write_demo_csvs(folder: Path) -> tuple[Path, Path]:
    """Write `digits.csv` and `shapes.csv` (UTF-8, LF) into `folder`; older ones are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    digits, shapes = folder / "digits.csv", folder / "shapes.csv"
    _write_csv(digits, ("id", "prompt", "image", "answer"), digit_rows())
    _write_csv(shapes, ("prompt", "image", "answer"), shape_rows())
    return digits, shapes


def _write_csv(path: Path, columns: tuple[str, ...], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_demo_csvs(parser.parse_args().folder)
