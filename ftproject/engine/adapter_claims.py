"""Reads what an adapter folder of other origin claims about its training, as far as it can be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftproject.engine.adapters import PROVENANCE_FILE, AdapterError, read_json
from ftproject.engine.images import MAX_PIXELS
from ftproject.engine.processors import PixelRule

LARGEST_JSON_BYTES = 2**20
# Where a folder may say how large images were: (file, key), the first that does wins.
PIXEL_RULE_PLACES = (
    (PROVENANCE_FILE, "pixel_rule"),
    ("processor_config.json", "image_processor"),
    ("preprocessor_config.json", None),
)


def claims_of(folder: Path) -> tuple[dict[str, Any], PixelRule | None, list[str]]:
    """The folder's provenance.json, the pixel rule that it or its processor files name, and what was unusable."""
    warnings = []
    provenance: dict[str, Any] = {}
    rule = None
    for name, key in PIXEL_RULE_PLACES:
        try:
            content = _small_json(folder / name)
            rule = rule or _pixel_rule(content.get(key) if key else content)
        except (AdapterError, ValueError, TypeError, AttributeError, OverflowError):
            warnings.append(f"{name} cannot be used and was left out")
            continue
        if name == PROVENANCE_FILE:
            provenance = content
    if rule is None:
        warnings.append("nothing says how large images were in its training; the base's own rule is used")
    return provenance, rule, warnings


def _small_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    if file.stat().st_size > LARGEST_JSON_BYTES:
        raise ValueError
    return read_json(file)


def _pixel_rule(claimed: Any) -> PixelRule | None:
    """A rule as provenance.json or a processor writes it: min_pixels and max_pixels, or a size of two edges."""
    if not isinstance(claimed, Mapping):
        return None
    size = claimed.get("size") or {}
    low = claimed.get("min_pixels") or size.get("shortest_edge")
    high = claimed.get("max_pixels") or size.get("longest_edge")
    if low is None or high is None:
        return None
    if not 1 <= int(low) <= int(high) <= MAX_PIXELS:
        raise ValueError
    return PixelRule(int(low), int(high))
