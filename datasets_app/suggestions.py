"""Guesses a column mapping from the names of the columns and the first rows."""

import re
from collections.abc import Sequence

from ftproject.engine.conversations import split_image_cell

PROMPT_NAMES = ("prompt", "question", "instruction", "query", "user", "input", "text")
RESPONSE_NAMES = ("response", "answer", "output", "completion", "assistant", "target", "caption", "label")
TRUTH_NAMES = ("ground_truth", "groundtruth", "gold", "reference", "expected")
_IMAGE_NAME = re.compile(r"image|img|photo|picture", re.IGNORECASE)
_PAGE = re.compile(r"\.(?:html?|php|aspx?|jsp|pdf)(?:[?#]|$)", re.IGNORECASE)
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_SEVERAL = re.compile(r"\.(?:png|jpe?g|webp|gif|bmp)[ \r]?[|;,\n]|[|;,\s](?:https?://|data:image/)", re.IGNORECASE)
_SEPARATORS = ("|", ";", "\n", ",", " ")
# A data URI is told by its beginning; a path is no longer than this.
CELL_START, PATH_LENGTH = 10_000, 500
# A label: few distinct, short values that come again.
LABEL_LENGTH, LABEL_SHARE, LABEL_ROWS = 40, 0.5, 4

Rows = Sequence[dict[str, str]]


def suggest_mapping(columns: list[str], rows: Rows) -> dict[str, object] | None:
    """A body for POST mapping, or None when there are not two columns to take for prompt and response."""
    images, separator = _image_columns(columns, rows)
    texts = [name for name in columns if name not in images]
    truth = _named(texts, TRUTH_NAMES)
    free = [name for name in texts if name != truth]
    prompt = _named(free, PROMPT_NAMES)
    response = _named([name for name in free if name != prompt], RESPONSE_NAMES)
    response, truth = (response, truth) if response else (truth, None)
    rest = sorted((name for name in free if name not in {prompt, response}), key=lambda name: -_mean_length(name, rows))
    prompt = prompt or (rest.pop(0) if rest else None)
    response = response or next((name for name in rest if _holds_labels(name, rows)), rest[0] if rest else None)
    if prompt is None or response is None:
        return None
    return {
        "prompt_column": prompt,
        "response_column": response,
        "ground_truth_column": truth,
        "image_url_columns": images,
        "image_separator": separator,
        "mandatory_columns": [name for name in images if all(row[name].strip() for row in rows)],
    }


def _image_columns(columns: list[str], rows: Rows) -> tuple[list[str], str | None]:
    """The columns that hold images, and what separates several in one cell."""
    cells = {name: [row[name] for row in rows if row[name].strip()] for name in columns}
    single = [name for name in columns if _holds_images(name, cells[name], None)]
    for separator in _SEPARATORS:
        if any(_holds_images(name, cells[name], separator) for name in columns if name not in single):
            return [name for name in columns if _holds_images(name, cells[name], separator)], separator
    return single, None


def _holds_images(name: str, cells: Sequence[str], separator: str | None) -> bool:
    if not cells:
        return _IMAGE_NAME.search(name) is not None
    parts = [part for cell in cells for part in split_image_cell(cell, separator)]
    return all(map(_is_image, parts)) and not all(_PAGE.search(part[:CELL_START]) for part in parts)


def _is_image(text: str) -> bool:
    start = text[:CELL_START].casefold()
    if start.startswith(("http://", "https://", "data:image/")):
        return not any(map(str.isspace, start)) and not _SEVERAL.search(start)
    return len(text) <= PATH_LENGTH and start.endswith(_ENDINGS) and not _SEVERAL.search(start)


def _holds_labels(name: str, rows: Rows) -> bool:
    cells = [row[name].strip() for row in rows]
    kinds = set(cells)
    if len(rows) < LABEL_ROWS or "" in kinds or max(map(len, kinds)) > LABEL_LENGTH:
        return False
    return 1 < len(kinds) <= LABEL_SHARE * len(cells)


def _named(columns: list[str], names: Sequence[str]) -> str | None:
    """The column that is called so, else the one whose name contains it; earlier names win."""
    folded = {name.strip().casefold(): name for name in columns}
    exact = next((folded[name] for name in names if name in folded), None)
    if exact:
        return exact
    return next((column for name in names for text, column in folded.items() if name in text), None)


def _mean_length(name: str, rows: Rows) -> float:
    return sum(len(row[name]) for row in rows) / max(len(rows), 1)
