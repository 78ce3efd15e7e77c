"""Loads the processor (tokenizer + image processor) of a base model and holds the one pixel rule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VIDEO_FILE = "video_preprocessor_config.json"


@dataclass(frozen=True)
class PixelRule:
    """Between which areas (in pixels) every image is brought before it is cut into patches."""

    min_pixels: int
    max_pixels: int


def load_processor(path: str | Path, *, min_pixels: int | None = None, max_pixels: int | None = None) -> Any:
    """The Qwen3-VL processor of a model folder or hub id, with the pixel rule applied.

    AutoProcessor where torchvision is installed; else the same processor without its video half, because only the
    video processor needs torchvision. Both give equal tensors for images.
    """
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(str(path), trust_remote_code=False)  # nosec B615 # a folder
    else:
        processor = _image_only_processor(_video_settings(path)).from_pretrained(str(path))
    apply_pixel_rule(processor, min_pixels, max_pixels)
    return processor


def save_processor(processor: Any, folder: Path) -> None:
    """Writes the processor's files, so that every other loader accepts them.

    Where the video half was left out, its settings are written as they were read: with torchvision installed,
    AutoProcessor refuses a folder without them.
    """
    processor.save_pretrained(str(folder))
    settings = getattr(processor, "video_settings", None)
    if settings is not None:
        (folder / VIDEO_FILE).write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _video_settings(path: str | Path) -> dict[str, Any] | None:
    """The settings of the video half, in either layout that transformers writes; None where there are none."""
    from transformers.utils import cached_file

    for name, key in ((VIDEO_FILE, None), ("processor_config.json", "video_processor")):
        file = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
        content = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        settings = content.get(key) if key else content
        if settings:
            return dict(settings)
    return None


def pixel_rule_of(processor: Any) -> PixelRule:
    """The rule that a processor applies."""
    size = processor.image_processor.size
    return PixelRule(int(size["shortest_edge"]), int(size["longest_edge"]))


def combined_rule(own: PixelRule, min_pixels: int | None, max_pixels: int | None) -> PixelRule:
    """The areas that are given, the model's own for the rest.

    A given bound wins over the model's other one: max_pixels below the model's minimum lowers that too.
    """
    low = own.min_pixels if min_pixels is None else min_pixels
    high = own.max_pixels if max_pixels is None else max_pixels
    if low > high:
        low, high = (low, low) if max_pixels is None else (high, high)
    return PixelRule(low, high)


def apply_pixel_rule(processor: Any, min_pixels: int | None, max_pixels: int | None) -> PixelRule:
    """Sets the areas that are given, keeps the model's own for the rest, and returns what is in force."""
    rule = combined_rule(pixel_rule_of(processor), min_pixels, max_pixels)
    # Assigned as a new object: the image processor's class shares one mutable default among its instances.
    size = processor.image_processor.size
    processor.image_processor.size = type(size)(shortest_edge=rule.min_pixels, longest_edge=rule.max_pixels)
    return rule


def write_pixel_rule(folder: Path, rule: PixelRule) -> None:
    """Sets the rule in a model folder's processor files, in both layouts that transformers writes."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = folder / name
        if not file.is_file():
            continue
        config = json.loads(file.read_text(encoding="utf-8"))
        images = config if name == "preprocessor_config.json" else config.get("image_processor")
        if not isinstance(images, dict):
            continue
        images["size"] = {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels}
        for older_name in ("min_pixels", "max_pixels"):
            images.pop(older_name, None)
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _image_only_processor(settings: dict[str, Any] | None) -> type[Any]:
    """A Qwen3VLProcessor whose signature has no video processor; sub-processors are read from the signature."""
    from transformers import Qwen3VLProcessor
    from transformers.processing_utils import ProcessorMixin

    class ImageOnlyQwen3VLProcessor(Qwen3VLProcessor):  # type: ignore[misc]
        # Of the class, because what an instance has is written into its files.
        video_settings = settings

        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **_: Any
        ) -> None:
            identifier = tokenizer.convert_tokens_to_ids
            for name in ("image", "video"):
                setattr(self, f"{name}_token", f"<|{name}_pad|>")
                setattr(self, f"{name}_token_id", identifier(f"<|{name}_pad|>"))
            for name in ("start", "end"):
                setattr(self, f"vision_{name}_token", f"<|vision_{name}|>")
                setattr(self, f"vision_{name}_token_id", identifier(f"<|vision_{name}|>"))
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    # Saved files carry the ordinary processor_class, so that every other loader accepts them.
    ImageOnlyQwen3VLProcessor.__name__ = "Qwen3VLProcessor"
    return ImageOnlyQwen3VLProcessor
