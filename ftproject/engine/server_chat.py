"""Reads OpenAI-format chat requests for the model server and writes its answers; nothing here fetches anything."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ftproject.engine.backends.base import EngineError, Generation
from ftproject.engine.configs import ConfigError, GenerationParams, parse_generation_params
from ftproject.engine.conversations import Conversation, ResolvedConversation
from ftproject.engine.images import ImageError, decode_data_uri, is_data_uri

# OpenAI's and vLLM's names of our settings.
PARAMETERS = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
}
FIXED = {"n": 1, "stream": False}
FIELDS = {"model", "messages", *PARAMETERS, *FIXED}
MAX_IMAGES = 16


class ChatError(EngineError):
    """A chat request that this server does not answer."""


@dataclass(frozen=True)
class ChatRequest:
    """One checked request; `images` are file:// and data: URIs, not yet opened."""

    model: str
    prompt: str
    images: tuple[str, ...]
    params: GenerationParams


def read_chat_request(body: object) -> ChatRequest:
    """The checked request; raises ChatError."""
    if not isinstance(body, Mapping):
        raise ChatError("invalid_body", "the body must be a JSON object")
    unknown = sorted(set(body) - FIELDS)
    if unknown:
        raise ChatError("unsupported_parameter", f"{unknown[0]} is not supported")
    for name, only in FIXED.items():
        if body.get(name) not in (None, only):
            raise ChatError("unsupported_parameter", f"{name} must be {only!r}")
    model = body.get("model")
    if not isinstance(model, str):
        raise ChatError("invalid_model", "model must be a string")
    prompt, images = read_messages(body.get("messages"))
    return ChatRequest(model, prompt, images, read_params(body))


def read_params(body: Mapping[str, Any]) -> GenerationParams:
    """The generation settings in our names; temperature 0 is greedy, as in vLLM."""
    given = {ours: body[theirs] for theirs, ours in PARAMETERS.items() if body.get(theirs) is not None}
    try:
        return parse_generation_params(given, GenerationParams(), path="")
    except ConfigError as error:
        raise ChatError("invalid_parameter", str(error)) from error


def read_messages(messages: object) -> tuple[str, tuple[str, ...]]:
    """Prompt and images of the one user message; images come first, as `conversations.messages_of` writes them."""
    match messages:
        case [{"role": "user", "content": str(text)}]:
            return text, ()
        case [{"role": "user", "content": [*parts, {"type": "text", "text": str(text)}]}]:
            return text, tuple(read_image_part(part) for part in parts)
    shape = "messages must be one user message: its images, then its text"
    raise ChatError("unsupported_messages", shape)


def read_image_part(part: object) -> str:
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return url
    raise ChatError("unsupported_messages", "every part before the text must be an image_url")


def resolve_chat(request: ChatRequest, image_root: Path, scratch: Path) -> ResolvedConversation:
    """The request as a conversation with image files; data URIs are written into `scratch`.

    A file must lie below `image_root`, links followed. Raises ChatError and ImageError.
    """
    if len(request.images) > MAX_IMAGES:
        raise ChatError("too_many_images", f"at most {MAX_IMAGES} images")
    paths = tuple(image_file(url, image_root, scratch / str(number)) for number, url in enumerate(request.images))
    conversation = Conversation(
        index=0, prompt=request.prompt, response="", ground_truth="", images=tuple(map(str, paths))
    )
    return ResolvedConversation(conversation, paths)


def image_file(url: str, image_root: Path, scratch: Path) -> Path:
    if is_data_uri(url):
        scratch.write_bytes(decode_data_uri(url))
        return scratch
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ChatError("image_not_local", "images must be file:// or data: URIs")
    try:
        path = Path(unquote(parts.path)).resolve(strict=True)
    except (OSError, ValueError) as error:
        raise ImageError("image_missing", "the image file does not exist") from error
    if not path.is_relative_to(image_root.resolve()) or not path.is_file():
        raise ChatError("image_not_local", "the image file is not in the image folder")
    return path


def chat_answer(model: str, generation: Generation, load_ms: float) -> dict[str, Any]:
    """An OpenAI chat completion, with our `timings` beside it."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": generation.text},
                "finish_reason": generation.finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": generation.completion_tokens,
            "total_tokens": generation.prompt_tokens + generation.completion_tokens,
        },
        "timings": {"generation_ms": generation.time_ms, "load_ms": load_ms},
    }
