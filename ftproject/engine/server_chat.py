"""Reads OpenAI-format chat requests and opens their images; nothing here fetches anything."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ftproject.engine.backends.base import EngineError
from ftproject.engine.chats import Chat, ChatTurn, Role
from ftproject.engine.configs import ConfigError, GenerationParams, parse_generation_params
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
# What clients send as a matter of form: only the value that changes nothing is taken.
NEUTRAL: dict[str, object] = {
    "n": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logprobs": False,
    "response_format": {"type": "text"},
}
UNUSED = frozenset({"user", "metadata"})
FIELDS = frozenset({"model", "messages", "stop", "stream", "stream_options", *PARAMETERS, *NEUTRAL, *UNUSED})
# An answer that a client sends back as a turn has these, null where there is nothing.
EMPTY_IN_ANSWERS = frozenset({"refusal", "annotations", "audio", "function_call", "tool_calls"})
ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_IMAGES = 16
MAX_MESSAGES = 256
MAX_STOPS = 16
LONGEST_STOP = 256


class ChatError(EngineError):
    """A chat request that cannot be answered; `param` is the field of the body that is wrong."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(code, message)
        self.param = param


@dataclass(frozen=True)
class ImageUrl:
    """The place of an image in a message, by its URL, not yet opened."""

    url: str


@dataclass(frozen=True)
class ChatMessage:
    """One message: texts and images in order."""

    role: Role
    parts: tuple[str | ImageUrl, ...]


@dataclass(frozen=True)
class ChatBody:
    """One checked request."""

    model: str
    messages: tuple[ChatMessage, ...]
    params: GenerationParams
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False

    @property
    def image_urls(self) -> list[str]:
        """All image URLs in the order of their places."""
        return [part.url for message in self.messages for part in message.parts if isinstance(part, ImageUrl)]


def read_chat_body(body: object) -> ChatBody:
    """The checked request; raises ChatError."""
    if not isinstance(body, Mapping):
        raise ChatError("invalid_body", "the body must be a JSON object")
    unknown = sorted(name for name in set(body) - FIELDS if body[name] is not None)  # null is as not given
    if unknown:
        raise ChatError("unsupported_parameter", f"{unknown[0]} is not supported", unknown[0])
    for name, only in NEUTRAL.items():
        if body.get(name) is not None and not _same(body[name], only):
            raise ChatError("unsupported_parameter", f"{name} must be {only!r}", name)
    model = body.get("model")
    if not isinstance(model, str):
        raise ChatError("invalid_model", "model must be a string", "model")
    stream = _flag(body, "stream")
    return ChatBody(
        model=model,
        messages=read_messages(body.get("messages")),
        params=read_params(body),
        stop=read_stop(body.get("stop")),
        stream=stream,
        include_usage=_read_stream_options(body.get("stream_options"), stream=stream),
    )


def _same(value: object, only: object) -> bool:
    return value == only and isinstance(value, bool) == isinstance(only, bool)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ChatError("invalid_parameter", f"{name} must be true or false", name)
    return bool(value)


def _read_stream_options(options: object, *, stream: bool) -> bool:
    if options is None:
        return False
    if not stream or not isinstance(options, Mapping) or set(options) - {"include_usage"}:
        message = "stream_options may hold include_usage, with stream true"
        raise ChatError("invalid_parameter", message, "stream_options")
    return _flag(options, "include_usage")


def read_params(body: Mapping[str, Any]) -> GenerationParams:
    """The generation settings in our names; temperature 0 is greedy, as in vLLM."""
    given = {ours: body[theirs] for theirs, ours in PARAMETERS.items() if body.get(theirs) is not None}
    lengths = {body[name] for name in ("max_tokens", "max_completion_tokens") if isinstance(body.get(name), int)}
    if len(lengths) > 1:
        raise ChatError("invalid_parameter", "max_tokens and max_completion_tokens differ: give one", "max_tokens")
    try:
        return parse_generation_params(given, GenerationParams(), path="")
    except ConfigError as error:
        theirs = {ours: name for name, ours in PARAMETERS.items() if body.get(name) is not None}
        problem = error.problems[0]
        name = theirs.get(problem.field.strip("."), problem.field)
        raise ChatError("invalid_parameter", f"{name}: {problem.message}", name) from error


def with_drawn_seed(params: GenerationParams) -> GenerationParams:
    """Sampling with a seed even where none was given, so that a batch that was cut short can be drawn again."""
    if params.greedy or params.seed is not None:
        return params
    return replace(params, seed=random.SystemRandom().getrandbits(31))


def read_stop(stop: object) -> tuple[str, ...]:
    """One stop text or several; raises ChatError."""
    words = [stop] if isinstance(stop, str) else stop
    if words is None:
        return ()
    if not isinstance(words, list) or len(words) > MAX_STOPS:
        raise ChatError("invalid_parameter", f"stop must be a text or a list of up to {MAX_STOPS} texts", "stop")
    if not all(isinstance(word, str) and 0 < len(word) <= LONGEST_STOP for word in words):
        raise ChatError("invalid_parameter", f"each stop text must have 1 to {LONGEST_STOP} characters", "stop")
    return tuple(words)


def read_messages(messages: object) -> tuple[ChatMessage, ...]:
    """The messages, the last one the user's; raises ChatError."""
    if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
        raise _unsupported(f"messages must be a list of 1 to {MAX_MESSAGES} messages")
    read = tuple(_read_message(message, f"messages[{place}]") for place, message in enumerate(messages))
    if read[-1].role != "user":
        raise _unsupported("the last message must be the user's")
    return read


def _unsupported(message: str, param: str = "messages") -> ChatError:
    return ChatError("unsupported_messages", message, param)


def _read_message(message: object, param: str) -> ChatMessage:
    if not isinstance(message, Mapping) or _fields_of(message) - {"role", "content", "name"}:
        raise _unsupported(f"{param} must be an object with role and content", param)
    role = ROLES.get(message["role"]) if isinstance(message.get("role"), str) else None
    if role is None:
        raise _unsupported(f"{param}.role must be one of {', '.join(ROLES)}", param)
    parts = tuple(_read_parts(message.get("content"), f"{param}.content"))
    if role != "user" and any(isinstance(part, ImageUrl) for part in parts):
        raise _unsupported(f"{param}: only a user's message can hold images", param)
    return ChatMessage(role, parts)


def _fields_of(message: Mapping[str, Any]) -> set[str]:
    return {name for name, value in message.items() if name not in EMPTY_IN_ANSWERS or value is not None}


def _read_parts(content: object, param: str) -> Iterator[str | ImageUrl]:
    if isinstance(content, str):
        yield content
        return
    if not isinstance(content, list) or not content:
        raise _unsupported(f"{param} must be a text or a list of parts", param)
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                yield text
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                yield ImageUrl(url)
            case _:
                raise _unsupported(f"{param}: every part must be a text or an image_url with its url", param)


def open_chat(body: ChatBody, image_root: Path, scratch: Path) -> Chat:
    """The request as a chat with image files; data URIs are written into `scratch`.

    A file must lie below `image_root`, links followed. Raises ChatError and ImageError.
    """
    if len(body.image_urls) > MAX_IMAGES:
        raise ChatError("too_many_images", f"at most {MAX_IMAGES} images", "messages")
    paths = iter([image_file(url, image_root, scratch / str(place)) for place, url in enumerate(body.image_urls)])
    return chat_with(body.messages, paths)


def chat_with(messages: Sequence[ChatMessage], paths: Iterator[Path]) -> Chat:
    """The messages as turns, each image's place taken by the next of `paths`."""
    return Chat(
        tuple(
            ChatTurn(item.role, tuple(next(paths) if isinstance(part, ImageUrl) else part for part in item.parts))
            for item in messages
        )
    )


def image_file(url: str, image_root: Path, scratch: Path) -> Path:
    """The file of a file:// or data: URI; raises ChatError and ImageError."""
    if is_data_uri(url):
        scratch.write_bytes(decode_data_uri(url))
        return scratch
    parts = _split(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ChatError("image_not_local", "images must be file:// or data: URIs", "messages")
    try:
        path = Path(unquote(parts.path)).resolve(strict=True)
    except (OSError, ValueError) as error:
        raise ImageError("image_missing", "the image file does not exist") from error
    if not path.is_relative_to(image_root.resolve()) or not path.is_file():
        raise ChatError("image_not_local", "the image file is not in the image folder", "messages")
    return path


def _split(url: str) -> Any:
    try:
        return urlsplit(url)
    except ValueError as error:  # an unfinished IPv6 address, say
        raise ChatError("image_not_local", "an image's URL cannot be read", "messages") from error
