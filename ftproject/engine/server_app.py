"""The model server's routes: chat completions, models and adapters in OpenAI's and vLLM's shapes, health, status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ftproject.engine.backends.base import EngineError, Generation
from ftproject.engine.images import ImageError
from ftproject.engine.server_chat import ChatError, ChatRequest, chat_answer, read_chat_request, resolve_chat
from ftproject.engine.server_model import CancelledGenerationError, ServedModel, describe_failure

T = TypeVar("T")
logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25  # between two looks whether the client is still there
CLIENT_GONE = 499  # nginx's word for it
STATUSES = {
    "model_not_found": 404,
    "adapter_not_found": 404,
    "model_loading": 503,
    "model_load_failed": 503,
    "out_of_memory": 503,
    "generation_failed": 500,
}


def build_app(served: ServedModel, image_root: Path) -> Starlette:
    """The application; loading starts with its lifespan, when the socket is already bound."""
    routes = ModelRoutes(served, image_root)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        served.start_loading()
        yield

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/health", routes.health),
            Route("/status", routes.status),
            Route("/v1/models", routes.models),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/load_lora_adapter", routes.load_lora_adapter, methods=["POST"]),
        ],
        exception_handlers={EngineError: answer_engine_error, ImageError: answer_engine_error},
    )


class ModelRoutes:
    def __init__(self, served: ServedModel, image_root: Path) -> None:
        self.served = served
        self.image_root = image_root

    async def health(self, _: Request) -> Response:
        """200 once the model answers, as vLLM's; 503 until then."""
        return JSONResponse({}, status_code=200 if self.served.status()["loaded"] else 503)

    async def status(self, _: Request) -> Response:
        return JSONResponse(self.served.status())

    async def models(self, _: Request) -> Response:
        base = self.served.spec.name
        found = [{"id": base, "object": "model", "owned_by": "local", "root": base, "parent": None}]
        found += [
            {"id": name, "object": "model", "owned_by": "local", "root": name, "parent": base}
            for name in self.served.adapters
        ]
        return JSONResponse({"object": "list", "data": found})

    async def load_lora_adapter(self, request: Request) -> Response:
        body = await read_json(request)
        match body:
            case {"lora_name": str(name), "lora_path": str(path)}:
                pass
            case _:
                raise ChatError("invalid_body", "lora_name and lora_path must be strings")
        if name in self.served.adapters or name == self.served.spec.name:
            raise ChatError("adapter_loaded", f"the adapter {name!r} has already been loaded")
        await self.served.in_turn(lambda: guarded(lambda: self.served.add_adapter(name, path)))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def chat(self, request: Request) -> Response:
        chat = read_chat_request(await read_json(request))
        self.served.adapter_of(chat.model)
        gone = threading.Event()
        answer = asyncio.create_task(self.served.in_turn(lambda: guarded(lambda: self.answer(chat, gone))))
        try:
            while not (await asyncio.wait({answer}, timeout=LOOK_SECONDS))[0]:
                if await request.is_disconnected():
                    gone.set()
            generation = await answer
        except CancelledGenerationError:
            return Response(status_code=CLIENT_GONE)
        return JSONResponse(chat_answer(chat.model, generation, self.served.progress.load_ms or 0.0))

    def answer(self, chat: ChatRequest, gone: threading.Event) -> Generation:
        with tempfile.TemporaryDirectory(prefix="qwen3vl-chat-") as scratch:
            conversation = resolve_chat(chat, self.image_root, Path(scratch))
            return self.served.generate(conversation, chat.params, chat.model, gone)


async def read_json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ChatError("invalid_body", "the body is not valid JSON") from error


def guarded(work: Callable[[], T]) -> T:
    """`work`, with any unforeseen failure logged and turned into an EngineError."""
    try:
        return work()
    except (EngineError, ImageError, CancelledGenerationError):
        raise
    except Exception as error:
        logger.exception("the model failed")
        raise describe_failure(error, "generation_failed") from error


def answer_engine_error(_: Request, error: Exception) -> Response:
    """OpenAI's error shape; 400 unless the code says otherwise."""
    assert isinstance(error, EngineError | ImageError)  # noqa: S101 - registered for these two
    status = STATUSES.get(error.code, 400)
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"message": error.message, "type": kind, "param": None, "code": error.code}
    return JSONResponse({"error": body}, status_code=status)
