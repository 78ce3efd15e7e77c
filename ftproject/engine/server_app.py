"""The model server's routes: chat completions, models and adapters in OpenAI's and vLLM's shapes, health, status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ftproject.engine.answering import ChatAnswer, ChatRequest
from ftproject.engine.backends.base import EngineError
from ftproject.engine.decoding import CancelledGenerationError
from ftproject.engine.images import ImageError, is_data_uri
from ftproject.engine.server_answers import DONE, AnswerWriter, error_body, event
from ftproject.engine.server_asked import AskedChat
from ftproject.engine.server_chat import ChatBody, ChatError, open_chat, read_chat_body
from ftproject.engine.server_model import ServedModel

CLIENT_GONE = 499  # nginx's word for it
REQUEST_SECONDS = 900.0  # the longest answer allowed (8192 tokens) from a slow CPU
GIVEN_UP_KEPT = 256
STATUSES = {
    "model_not_found": 404,
    "adapter_not_found": 404,
    "model_loading": 503,
    "model_load_failed": 503,
    "out_of_memory": 503,
    "generation_failed": 500,
    "generation_timeout": 504,
}


def build_app(served: ServedModel, image_root: Path, *, request_seconds: float = REQUEST_SECONDS) -> Starlette:
    """The application; loading starts with its lifespan, when the socket is already bound."""
    routes = ModelRoutes(served, image_root, request_seconds)

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
            Route("/cancel", routes.cancel, methods=["POST"]),
            Route("/v1/load_lora_adapter", routes.load_lora_adapter, methods=["POST"]),
        ],
        exception_handlers={EngineError: answer_engine_error, ImageError: answer_engine_error},
    )


class ModelRoutes:
    def __init__(self, served: ServedModel, image_root: Path, request_seconds: float) -> None:
        self.served = served
        self.image_root = image_root
        self.request_seconds = request_seconds
        self.asked: dict[str, AskedChat] = {}
        self.given_up: deque[str] = deque(maxlen=GIVEN_UP_KEPT)

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
        await self.served.in_turn(lambda: self.served.add_adapter(name, path))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def chat(self, request: Request) -> Response:
        body = read_chat_body(await read_json(request))
        asked = AskedChat(body, self.request_seconds)
        answer = asyncio.create_task(self.answer(asked))
        answer.add_done_callback(lambda task: task.cancelled() or task.exception())  # its reader may have left
        self.remember(request.headers.get("x-request-id"), asked, answer)
        try:
            await asked.begun(answer, request)
            if body.stream:
                # What fails before the first token is an answer with a status; from here on it is part of the stream.
                return StreamingResponse(self.stream(asked, answer), media_type="text/event-stream")
            return JSONResponse(self.writer(body).completion(await answer))
        except CancelledGenerationError:
            return Response(status_code=CLIENT_GONE)

    async def cancel(self, request: Request) -> Response:
        """Gives an answer up by the X-Request-ID of its request; one that is not there has ended."""
        match await read_json(request):
            case {"request_id": str(request_id)} if request_id in self.asked:
                self.asked[request_id].gone.set()
            case {"request_id": str(request_id)}:
                self.given_up.append(request_id)  # it comes by another connection, and may have been faster
        return JSONResponse({})

    def remember(self, request_id: str | None, asked: AskedChat, answer: asyncio.Task[ChatAnswer]) -> None:
        if request_id in self.given_up:
            asked.gone.set()
        if request_id:
            self.asked[request_id] = asked
            answer.add_done_callback(lambda _: self.asked.pop(request_id, None))

    async def answer(self, asked: AskedChat) -> ChatAnswer:
        body = asked.body
        adapter = self.served.adapter_of(body.model)
        with scratch_for(body) as scratch:
            if scratch is None:
                chat = open_chat(body, self.image_root, Path())
            else:
                chat = await asyncio.to_thread(open_chat, body, self.image_root, scratch)
            return await self.served.answer(ChatRequest(chat, asked.decoding(), adapter), body.model)

    async def stream(self, asked: AskedChat, answer: asyncio.Task[ChatAnswer]) -> AsyncIterator[bytes]:
        writer = self.writer(asked.body)
        try:
            yield writer.first_chunk()
            async for piece in asked.pieces_until(answer):
                yield writer.text_chunk(piece)
            done = await answer
            yield writer.last_chunk(done)
            if asked.body.include_usage:
                yield writer.usage_chunk(done)
        except CancelledGenerationError:
            return
        except (EngineError, ImageError) as error:
            yield event(error_body(error, STATUSES.get(error.code, 400)))
        finally:
            asked.gone.set()
        yield DONE

    def writer(self, body: ChatBody) -> AnswerWriter:
        return AnswerWriter(body.model, self.served.progress.load_ms or 0.0)


@contextlib.contextmanager
def scratch_for(body: ChatBody) -> Iterator[Path | None]:
    """A folder for pictures that came inside the request; None when there are none."""
    if not any(is_data_uri(url) for url in body.image_urls):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="qwen3vl-chat-") as folder:
        yield Path(folder)


async def read_json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ChatError("invalid_body", "the body is not valid JSON") from error


def answer_engine_error(_: Request, error: Exception) -> Response:
    """OpenAI's error shape; 400 unless the code says otherwise."""
    assert isinstance(error, EngineError | ImageError)  # noqa: S101 - registered for these two
    status = STATUSES.get(error.code, 400)
    return JSONResponse(error_body(error, status), status_code=status)
