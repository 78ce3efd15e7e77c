"""Answers OpenAI-format chats: finds the model that a name means, fetches pictures, asks the model server."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ftproject.core.departure import Departure
from ftproject.core.errors import InvalidInputError, NotFoundError, Problem
from ftproject.core.storage import models_dir
from ftproject.engine.conversations import neutralise_special_tokens
from ftproject.engine.remote import openai_settings
from ftproject.engine.server_chat import MAX_IMAGES, ChatBody, ChatError, ChatMessage, ImageUrl, read_chat_body
from inference_app.remote_server import failures_told, remote_server
from inference_app.server_process import ServerSpec
from inference_app.services import choose_model, open_session, resolve_images, served_adapter, with_seed
from inference_app.session import ServedAdapter
from training_app.configuration import default_config, resolve_config
from training_app.models import Adapter
from training_app.selectors import find_effective_adapter

OWNER = "qwen3vl-finetuning"


@dataclass(frozen=True)
class PreparedChat:
    """A request that needs only the model any more; `model` is the name that the client used."""

    model: str
    body: dict[str, Any]
    spec: ServerSpec
    adapter: ServedAdapter | None
    stream: bool
    include_usage: bool


def prepare_chat(data: object) -> PreparedChat:
    """Everything that can be refused before the GPU is touched; pictures are fetched last, as the slowest part."""
    try:
        chat = read_chat_body(data)
    except ChatError as error:
        problem = Problem(code=error.code, message=error.message, field=error.param)
        raise InvalidInputError(error.message, code=error.code, errors=[problem]) from error
    spec, adapter = find_model(chat.model)
    return PreparedChat(chat.model, forwarded_body(chat), spec, adapter, chat.stream, chat.include_usage)


def find_model(name: str) -> tuple[ServerSpec, ServedAdapter | None]:
    """A name means the adapter that has it, else a base model."""
    if Adapter.objects.filter(name=name).exists():
        adapter = find_effective_adapter(reference=name)
        assert adapter is not None  # noqa: S101 - a reference was given
        return choose_model(None, adapter), served_adapter(adapter)
    try:
        return choose_model(name, None), None
    except InvalidInputError as error:
        if error.code == "model_needs_gpu":
            raise
        raise unknown_model(name) from error


def unknown_model(name: str) -> NotFoundError:
    message = f"The model {name[:200]!r} does not exist."
    problem = Problem(code="model_not_found", message=message, field="model")
    hint = "GET /v1/models lists the base models and the adapters."
    return NotFoundError(message, code=problem.code, hint=hint, errors=[problem])


def forwarded_body(chat: ChatBody) -> dict[str, Any]:
    """The request as the model server gets it: pictures as files of our cache, every setting named."""
    urls = chat.image_urls
    if len(urls) > MAX_IMAGES:
        raise InvalidInputError(f"At most {MAX_IMAGES} images.", code="too_many_images")
    files = iter(resolve_images(urls))
    body = {"messages": [forwarded_message(message, files) for message in chat.messages]}
    options = {"stream_options": {"include_usage": True}} if chat.include_usage else {}
    stop = {"stop": list(chat.stop)} if chat.stop else {}
    return body | openai_settings(with_seed(chat.params)) | stop | options


def forwarded_message(message: ChatMessage, files: Iterator[Path]) -> dict[str, Any]:
    return {"role": message.role, "content": [forwarded_part(part, files) for part in message.parts]}


def forwarded_part(part: str | ImageUrl, files: Iterator[Path]) -> dict[str, Any]:
    if isinstance(part, ImageUrl):
        return {"type": "image_url", "image_url": {"url": next(files).as_uri()}}
    # Our own model server does it too; another server takes special tokens in a text for its own.
    return {"type": "text", "text": neutralise_special_tokens(part)}


def complete_chat(chat: PreparedChat, departure: Departure | None = None) -> dict[str, Any]:
    """The whole answer in OpenAI's shape."""
    with open_session(chat.spec, departure=departure) as session:
        return session.complete(chat.body, chat.adapter) | {"model": chat.model}


def stream_chat(chat: PreparedChat, departure: Departure | None = None) -> Iterator[dict[str, Any]]:
    """The answer's chunks; what fails before the first one is raised here and now, as for a whole answer."""
    chunks = chunks_of(chat, departure)
    first = next(chunks)

    def all_chunks() -> Iterator[dict[str, Any]]:
        with closing(chunks):
            yield first
            yield from chunks

    return all_chunks()


def chunks_of(chat: PreparedChat, departure: Departure | None) -> Generator[dict[str, Any]]:
    with open_session(chat.spec, departure=departure) as session:
        for chunk in session.stream(chat.body, chat.adapter):
            if chunk.get("choices") or chat.include_usage:  # a remote server always sends its usage
                yield chunk | {"model": chat.model}


def list_models() -> list[dict[str, Any]]:
    """The default base model, those in the models folder, then every adapter that changes something."""
    bases = dict.fromkeys(base_model_names())
    adapters = Adapter.objects.exclude(effective=False)
    return [
        *(describe_model(name, None, None) for name in bases),
        *(describe_model(item.name, item.base_model_name, item.created_at) for item in adapters),
    ]


def base_model_names() -> list[str]:
    if remote := remote_server():
        with failures_told():
            return remote.server.base_models()
    return [resolve_config(default_config())[0].model_name, *local_model_names()]


def local_model_names() -> list[str]:
    folders = (path for path in models_dir().iterdir() if not path.name.startswith("."))
    return sorted(path.name for path in folders if (path / "config.json").is_file())


def describe_model(name: str, parent: str | None, created_at: datetime | None) -> dict[str, Any]:
    created = int((created_at or datetime(1970, 1, 1, tzinfo=UTC)).timestamp())
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER, "root": name, "parent": parent}


def get_model(name: str) -> dict[str, Any]:
    for model in list_models():
        if model["id"] == name:
            return model
    raise unknown_model(name)
