"""Guesses a column mapping from the names of the columns and the first rows."""

import re
from collections.abc import Sequence

PROMPT_NAMES = ("prompt", "question", "instruction", "query", "user", "input", "text")
RESPONSE_NAMES = ("response", "answer", "output", "completion", "assistant", "target", "caption", "label")
TRUTH_NAMES = ("ground_truth", "groundtruth", "gold", "reference", "expected")
_IMAGE_NAME = re.compile(r"image|img|photo|picture", re.IGNORECASE)
_IMAGE_CELL = re.compile(r"\s*(data:image/|https?://)", re.IGNORECASE)
_NEXT_IMAGE = re.compile(r"https?://\S*?([|;\n, ])\s*https?://", re.IGNORECASE)

Rows = Sequence[dict[str, str]]


def suggest_mapping(columns: list[str], rows: Rows) -> dict[str, object] | None:
    """A body for POST mapping, or None when there are not two columns to take for prompt and response."""
    images = [name for name in columns if _holds_images(name, rows)]
    texts = [name for name in columns if name not in images]
    truth = _named(texts, TRUTH_NAMES)
    free = [name for name in texts if name != truth]
    prompt = _named(free, PROMPT_NAMES)
    response = _named([name for name in free if name != prompt], RESPONSE_NAMES)
    response, truth = (response, truth) if response else (truth, None)
    rest = sorted((name for name in free if name not in {prompt, response}), key=lambda name: -_mean_length(name, rows))
    prompt = prompt or (rest.pop(0) if rest else None)
    response = response or (rest.pop(0) if rest else None)
    if prompt is None or response is None:
        return None
    return {
        "prompt_column": prompt,
        "response_column": response,
        "ground_truth_column": truth,
        "image_url_columns": images,
        "image_separator": _separator(images, rows),
        "mandatory_columns": [name for name in images if all(row[name].strip() for row in rows)],
    }


def _holds_images(name: str, rows: Rows) -> bool:
    filled = [row[name] for row in rows if row[name].strip()]
    if not filled:
        return _IMAGE_NAME.search(name) is not None
    return all(_IMAGE_CELL.match(cell) for cell in filled)


def _named(columns: list[str], names: Sequence[str]) -> str | None:
    """The column that is called so, else the one whose name contains it; earlier names win."""
    folded = {name.strip().casefold(): name for name in columns}
    exact = next((folded[name] for name in names if name in folded), None)
    if exact:
        return exact
    return next((column for name in names for text, column in folded.items() if name in text), None)


def _mean_length(name: str, rows: Rows) -> float:
    return sum(len(row[name]) for row in rows) / max(len(rows), 1)


def _separator(images: list[str], rows: Rows) -> str | None:
    found = (_NEXT_IMAGE.search(row[name]) for row in rows for name in images)
    return next((match[1] for match in found if match), None)
