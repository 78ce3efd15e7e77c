"""Counts the tokens of a row exactly without torch, transformers or a GPU: text by `tokenizers`, images by size."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ftproject.engine.backends.base import EngineError, RowError
from ftproject.engine.conversations import Conversation, ResolvedConversation
from ftproject.engine.encoding import prompt_and_answer
from ftproject.engine.images import ImageError, inspect_image
from ftproject.engine.processors import PixelRule, combined_rule

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - how Qwen3-VL's templates spell an image's place
LARGEST_ASPECT_RATIO = 200
Size = tuple[int, int]


class TokenCountError(EngineError):
    """Counts that cannot be made, because files of the model are not on this disk or not readable."""


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """The height and width to which Qwen-VL's image processor brings an image, in pixels, multiples of `factor`.

    The rule of `smart_resize` in transformers/models/qwen2_vl/image_processing_pil_qwen2_vl.py (5.17), which
    Qwen3-VL uses; the tests compare both. Raises ValueError for an aspect ratio above 200.
    """
    ratio = max(height, width) / min(height, width)
    if ratio > LARGEST_ASPECT_RATIO:
        raise ValueError(f"the aspect ratio is {ratio:g}, more than {LARGEST_ASPECT_RATIO}")
    high, wide = round(height / factor) * factor, round(width / factor) * factor
    if high * wide > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        high = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif high * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        high = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return high, wide


@dataclass(frozen=True)
class VisionRule:
    """How an image becomes tokens: patches of `patch_size` pixels, `merge_size` squared of them to a token."""

    patch_size: int
    merge_size: int
    pixels: PixelRule

    def resized(self, width: int, height: int) -> Size:
        """The width and height to which an upright image is brought; raises RowError (image_aspect_ratio)."""
        factor = self.patch_size * self.merge_size
        low, high = self.pixels.min_pixels, self.pixels.max_pixels
        try:
            tall, wide = smart_resize(height, width, factor=factor, min_pixels=low, max_pixels=high)
        except ValueError as error:
            raise RowError("image_aspect_ratio", str(error)) from error
        return wide, tall

    def tokens(self, width: int, height: int) -> int:
        """Tokens of an upright image of that size in pixels; raises RowError (image_aspect_ratio)."""
        wide, tall = self.resized(width, height)
        return (tall // self.patch_size) * (wide // self.patch_size) // self.merge_size**2

    def limited(self, max_pixels: int) -> VisionRule:
        """The same with a lower upper bound."""
        return replace(self, pixels=combined_rule(self.pixels, None, max_pixels))


@dataclass(frozen=True)
class RowTokens:
    """Tokens of one row: its text with the template's own, and those of each image."""

    text: int
    images: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.text + sum(self.images)


class TokenCounter:
    """Counts rows as `encoding.RowEncoder` encodes them, from the same template, vocabulary and pixel rule."""

    def __init__(self, tokenizer: Any, template: ChatTemplate, vision: VisionRule) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.vision = vision

    def count(self, row: ResolvedConversation) -> RowTokens:
        """The tokens of prompt, images and answer; raises RowError as RowEncoder.encode does."""
        return self.count_sized(row.conversation, image_sizes(row.image_paths))

    def count_sized(self, conversation: Conversation, sizes: Sequence[Size]) -> RowTokens:
        """The same for images of known (width, height), one for each image of the conversation."""
        prompt, answer, images = self._rendered(conversation, sizes)
        return RowTokens(self._length(prompt) - len(images) + self._length(answer), images)

    def encode(self, row: ResolvedConversation) -> tuple[list[int], list[int]]:
        """The ids of prompt and answer, the ones that RowEncoder gives; raises RowError as that does."""
        prompt, answer, images = self._rendered(row.conversation, image_sizes(row.image_paths))
        first, *others = prompt.split(IMAGE_TOKEN)
        expanded = first + "".join(IMAGE_TOKEN * count + text for count, text in zip(images, others, strict=True))
        return self._encode(expanded).ids, self._encode(answer).ids

    def _rendered(self, conversation: Conversation, sizes: Sequence[Size]) -> tuple[str, str, tuple[int, ...]]:
        """Prompt and answer as the template writes them, and the tokens of each image."""
        prompt, answer = prompt_and_answer(self._template.render, conversation, with_response=True)
        places = prompt.count(IMAGE_TOKEN)
        if places != len(sizes):
            raise RowError("image_count", f"{places} image places for {len(sizes)} image files")
        return prompt, answer, tuple(self.vision.tokens(width, height) for width, height in sizes)

    def token_ids(self, conversation: Conversation) -> list[int]:
        """The ids of a row in which each image has one token only."""
        texts = prompt_and_answer(self._template.render, conversation, with_response=True)
        return [number for text in texts for number in self._encode(text).ids]

    def token_id(self, token: str) -> int | None:
        """The id of a token of the vocabulary, or None."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def token_text(self, number: int) -> str:
        """What a token stands for; a part of a character is shown as the vocabulary spells it."""
        text: str = self._tokenizer.decode([number], skip_special_tokens=False)
        return text if "\ufffd" not in text else str(self._tokenizer.id_to_token(number))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that the template writes and no text can."""
        return frozenset(
            number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special
        )

    def _length(self, text: str) -> int:
        return len(self._encode(text)) if text else 0

    def _encode(self, text: str) -> Any:
        return self._tokenizer.encode(text, add_special_tokens=False)


class ChatTemplate:
    """A model's chat template, rendered as transformers does: sandboxed, with its filters and globals."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        self._source = source
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = False, **_: Any) -> str:
        """The text of the messages; raises RowError (template_refused) where the template refuses them."""
        from jinja2.exceptions import TemplateError

        try:
            text: str = self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except TemplateError as error:
            raise RowError("template_refused", f"the chat template refuses the row: {error}") from error
        return text

    @cached_property
    def _compiled(self) -> Any:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_template_error
        return environment.from_string(self._source)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise_template_error(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def image_sizes(paths: Sequence[Path]) -> list[Size]:
    """Upright (width, height) of each file from its header; raises RowError with the image's code."""
    try:
        facts = [inspect_image(path) for path in paths]
    except ImageError as error:
        raise RowError(error.code, error.message) from error
    return [(fact.width, fact.height) for fact in facts]


def load_token_counter(
    model_path: str, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> TokenCounter:
    """The counter of a model folder, or of a hub model whose files lie in the hub's cache; nothing is fetched.

    Raises TokenCountError (model_files_missing, model_files_invalid).
    """
    from tokenizers import Tokenizer

    source = _required_file(model_path, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(source))
    except Exception as error:  # the binding raises a bare Exception for whatever Rust found
        raise TokenCountError("model_files_invalid", f"tokenizer.json cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    template = ChatTemplate(_template_source(model_path), _special_tokens(model_path))
    return TokenCounter(tokenizer, template, load_vision_rule(model_path, min_pixels, max_pixels))


def load_vision_rule(model_path: str, min_pixels: int | None = None, max_pixels: int | None = None) -> VisionRule:
    """Patch sizes and pixel rule of a model with a run's bounds over them; raises TokenCountError."""
    whole = read_model_json(model_path, "processor_config.json")
    facts = whole.get("image_processor") or read_model_json(model_path, "preprocessor_config.json", required=True)
    size = facts.get("size") or {}
    try:
        own = PixelRule(
            int(facts.get("min_pixels") or size["shortest_edge"]), int(facts.get("max_pixels") or size["longest_edge"])
        )
        return VisionRule(
            int(facts["patch_size"]), int(facts["merge_size"]), combined_rule(own, min_pixels, max_pixels)
        )
    except (KeyError, TypeError, ValueError) as error:
        message = f"preprocessor_config.json does not say {error}"
        raise TokenCountError("model_files_invalid", message) from error


def model_file(model_path: str, name: str) -> Path | None:
    """A file of a model folder, or of the hub's cache for a hub id; None when it is not on this disk."""
    if os.path.isdir(model_path):
        path = Path(model_path) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model_path, name)
    return Path(found) if isinstance(found, str) else None


def read_model_json(model_path: str, name: str, *, required: bool = False) -> dict[str, Any]:
    """An object of a model's JSON file, empty when the file is not there; raises TokenCountError."""
    path = _required_file(model_path, name) if required else model_file(model_path, name)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenCountError("model_files_invalid", f"{name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise TokenCountError("model_files_invalid", f"{name} does not hold an object")
    return found


def _required_file(model_path: str, name: str) -> Path:
    path = model_file(model_path, name)
    if path is None:
        shown = os.path.basename(model_path) if os.path.isdir(model_path) else model_path
        raise TokenCountError("model_files_missing", f"{name} of {shown} is not on this disk")
    return path


def _template_source(model_path: str) -> str:
    path = model_file(model_path, "chat_template.jinja")
    if path is not None:
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        source = read_model_json(model_path, name).get("chat_template")
        if isinstance(source, str):
            return source
    return _required_file(model_path, "chat_template.jinja").read_text(encoding="utf-8")


def _special_tokens(model_path: str) -> dict[str, str]:
    """The tokens that transformers offers to a template by name."""
    config = read_model_json(model_path, "tokenizer_config.json")
    found = {name: config.get(name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    named = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: token for name, token in named.items() if isinstance(token, str)}
