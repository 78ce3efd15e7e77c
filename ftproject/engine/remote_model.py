"""Evaluates rows on a server of OpenAI's format: a LoadedModel over HTTP, several requests at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ftproject.engine.answering import ChatAnswer, ChatRequest
from ftproject.engine.backends.base import EngineError, FinishReason, Generation, RowError
from ftproject.engine.canary import AdapterCanary
from ftproject.engine.configs import GenerationParams
from ftproject.engine.conversations import ResolvedConversation, messages_of
from ftproject.engine.remote import (
    RemoteError,
    RemoteRefusalError,
    RemoteServer,
    openai_settings,
    with_embedded_pictures,
)

logger = logging.getLogger(__name__)

REQUESTS_AT_ONCE = 16
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
MOST_KEPT = 1024


class RemoteModel:
    """A base, and adapters by name, on another server; `adapters` gives the name and weights' sha256 of each folder."""

    def __init__(
        self,
        server: RemoteServer,
        model_name: str,
        adapters: dict[Path, tuple[str, str]],
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server = server
        self.model_name = model_name
        self.device = server.settings.host
        self._base = server.base_of(model_name)
        self._adapters = adapters
        self._canary = AdapterCanary(server)
        self._sleep = sleep
        # A row that is refused makes its batch be asked again in halves; what was answered is not asked twice.
        self._kept: dict[tuple[str, GenerationParams, ResolvedConversation], Generation] = {}

    def ensure_adapter(self, path: Path) -> None:
        """Has the adapter served and its effect shown; raises RemoteError."""
        self._served(path)

    def _served(self, adapter: Path | None) -> str:
        if adapter is None:
            return self._base
        name = self.server.serve_adapter(*self._adapters[adapter])
        self._canary.require_effect(self._base, name)
        return name

    def generate(
        self,
        conversations: Sequence[ResolvedConversation],
        params: GenerationParams,
        *,
        adapter: Path | None,
        on_token: Callable[[str], None] | None = None,
    ) -> list[Generation]:
        """One answer per conversation, in order; raises RowError for one that the server refuses, and RemoteError."""
        model = self._served(adapter)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="remote") as threads:
            return list(threads.map(lambda row: self._answer_once(model, adapter, params, row), conversations))

    def _answer_once(
        self, model: str, adapter: Path | None, params: GenerationParams, row: ResolvedConversation
    ) -> Generation:
        key = (model, params, row)
        if key not in self._kept:
            answer = self._answer(adapter, params, row)
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            self._kept[key] = answer
        return self._kept[key]

    def _answer(self, adapter: Path | None, params: GenerationParams, row: ResolvedConversation) -> Generation:
        began = time.perf_counter()
        try:
            answer = self._with_retries({"messages": openai_messages(row), **openai_settings(params)}, adapter)
        except RemoteRefusalError as error:
            raise RowError(error.code, f"row {row.conversation.index}: {error.message}") from error
        except OSError as error:
            raise RowError("image_missing", f"row {row.conversation.index}: an image file is gone") from error
        return read_generation(answer, (time.perf_counter() - began) * 1000)

    def _with_retries(self, body: dict[str, Any], adapter: Path | None) -> dict[str, Any]:
        """A server that was started again gets the adapter once more, and must show its effect once more."""
        for seconds in (*RETRY_SECONDS, None):
            try:
                return self.server.complete(body | {"model": self._served(adapter)})
            except RemoteError as error:
                if error.code not in {"inference_server_busy", "inference_server_unreachable"} or seconds is None:
                    raise
                logger.warning("%s: trying again in %.0f s", error.message, seconds)
                self._sleep(seconds)
        raise AssertionError("unreachable")

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        """Chats go to the server directly, without this class."""
        raise EngineError("not_supported", "a remote model answers rows")

    def answer_log_probabilities(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None
    ) -> list[float]:
        """Not told by a chat server: it gives probabilities of its own tokens only. Raises EngineError."""
        raise EngineError("confidence_needs_local", "the probability of a given answer needs a local model")

    def preload(self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None) -> None:
        """Nothing to prepare: pictures are sent as they are."""

    def prompt_lengths(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None
    ) -> list[int]:
        """Characters, which order rows as well as tokens do; the server makes its own batches."""
        return [1 + len(row.conversation.prompt) for row in conversations]

    def batch_tokens(self) -> int | None:
        """Unknown: the server's memory is its own."""
        return None

    def memory_mb(self) -> int:
        """None of this machine's."""
        return 0


def openai_messages(row: ResolvedConversation) -> list[dict[str, Any]]:
    """The messages that training and evaluation build, with the row's image files inside them."""
    paths = iter(row.image_paths)
    messages = [
        {
            **message,
            "content": [
                {"type": "image_url", "image_url": {"url": next(paths).resolve().as_uri()}}
                if part["type"] == "image"
                else part
                for part in message["content"]
            ],
        }
        for message in messages_of(row.conversation, with_response=False)
    ]
    return with_embedded_pictures(messages)


def read_generation(answer: dict[str, Any], time_ms: float) -> Generation:
    """Raises RemoteError for what is no chat completion."""
    try:
        choice, usage = answer["choices"][0], answer["usage"]
        reason: FinishReason = "length" if choice["finish_reason"] == "length" else "stop"
        text = str(choice["message"]["content"] or "")
        return Generation(text, int(usage["prompt_tokens"]), int(usage["completion_tokens"]), reason, time_ms)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RemoteError("inference_server_failed", "the inference server gave no chat completion") from error
