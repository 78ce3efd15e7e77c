"""The one base model of a server process: loaded in a thread, adapters beside it, one batch of requests at a time."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil

from ftproject.engine.adapters import AdapterError
from ftproject.engine.answering import ChatAnswer, ChatRequest
from ftproject.engine.backends.base import EngineError
from ftproject.engine.decoding import CancelledGenerationError
from ftproject.engine.gpu import device_facts
from ftproject.engine.images import ImageError
from ftproject.engine.server_batches import Batcher

T = TypeVar("T")
logger = logging.getLogger(__name__)

PER_IMPORT, ALMOST, DONE = 10, 95, 100  # percent
# The greater part of a small model's loading; done first so that growing memory afterwards means weights. Unsloth
# must be imported before transformers, which it patches.
HEAVY_IMPORTS = {
    "transformers": ("torch", "transformers.models.qwen3_vl.modeling_qwen3_vl"),
    "unsloth": ("unsloth",),
}


@dataclass(frozen=True)
class ModelSpec:
    """Which base model a server process holds, and how."""

    name: str
    path: str
    backend: str
    load_in_4bit: bool | None = None
    max_seq_length: int | None = None


class ChatModel(Protocol):
    """The part of a LoadedModel that the server uses."""

    device: str

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]: ...

    def ensure_adapter(self, path: Path) -> None: ...

    def memory_mb(self) -> int: ...


def load_model(spec: ModelSpec) -> ChatModel:
    """The base model in memory; raises EngineError."""
    from ftproject.engine.backends import get_backend

    return get_backend(spec.backend, device_facts(), model_name=spec.name).load(
        spec.name,
        spec.path,
        load_in_4bit=spec.load_in_4bit,
        max_seq_length=spec.max_seq_length,
    )


class LoadProgress:
    """How far loading is, in percent: an estimate from how much of the weights' size memory has grown."""

    def __init__(self, path: str) -> None:
        self.weight_bytes = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
        self.imports = 0
        self.baseline: int | None = None
        self.started_at = time.monotonic()
        self.load_ms: float | None = None

    def imported(self) -> None:
        self.baseline = memory_bytes()

    def finished(self) -> None:
        self.load_ms = round((time.monotonic() - self.started_at) * 1000, 1)

    @property
    def percent(self) -> int:
        if self.load_ms is not None:
            return DONE
        imported = PER_IMPORT * self.imports
        if self.baseline is None or not self.weight_bytes:  # no files yet: a hub model that is still on its way
            return imported
        grown = max(0, memory_bytes() - self.baseline) / self.weight_bytes
        return min(ALMOST, imported + int((ALMOST - imported) * grown))


def memory_bytes() -> int:
    """What torch holds on the GPU where it uses one, plus this process's resident memory."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # None also while another thread is still importing torch
    on_gpu = cuda.memory_allocated() if cuda is not None and cuda.is_initialized() else 0
    return int(on_gpu + psutil.Process().memory_info().rss)


class ServedModel:
    """Everything that touches the model runs in one thread: batches of requests, and the loading of adapters."""

    def __init__(
        self, spec: ModelSpec, adapters_root: Path, load: Callable[[ModelSpec], ChatModel] = load_model
    ) -> None:
        self.spec = spec
        self.adapters_root = adapters_root
        self.adapters: dict[str, Path] = {}
        self.current: str | None = None
        self.error: EngineError | None = None
        self.progress = LoadProgress(spec.path)
        self._load = load
        self._model: ChatModel | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._batcher = Batcher(self._answer_batch)

    def start_loading(self) -> None:
        self._thread.submit(self._load_guarded)

    def _load_guarded(self) -> None:
        try:
            for module in HEAVY_IMPORTS.get(self.spec.backend, ()):
                import_module(module)
                self.progress.imports += 1
            self.progress.imported()
            self._model = self._load(self.spec)
            self.progress.finished()
            logger.info("%s loaded in %.0f ms", self.spec.name, self.progress.load_ms)
        except Exception as error:
            logger.exception("%s could not be loaded", self.spec.name)
            self.error = describe_failure(error, "model_load_failed")

    @property
    def model(self) -> ChatModel:
        """The loaded model; raises EngineError model_loading, or why it could not be loaded."""
        if self.error is not None:
            raise self.error
        if self._model is None:
            raise EngineError("model_loading", f"{self.spec.name} is still loading")
        return self._model

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Runs `work` in the model's thread, after the batch that runs now; raises EngineError and ImageError."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: guarded(work))

    def add_adapter(self, name: str, path: str) -> None:
        """Loads an adapter folder below the adapters' root under a name; raises EngineError."""
        folder = Path(path).resolve()
        if not folder.is_relative_to(self.adapters_root.resolve()):
            raise AdapterError("adapter_not_found", f"there is no adapter {name!r}")
        self.model.ensure_adapter(folder)
        self.adapters[name] = folder

    def adapter_of(self, model: str) -> Path | None:
        """The adapter that a request's `model` means, None for the base; raises EngineError model_not_found."""
        if model == self.spec.name:
            return None
        if model not in self.adapters:
            raise EngineError("model_not_found", f"the model {model!r} does not exist")
        return self.adapters[model]

    async def answer(self, request: ChatRequest, model: str) -> ChatAnswer:
        """The answer of `model`, in a batch with what else is asked now.

        Raises EngineError, and CancelledGenerationError when the request was cancelled.
        """
        _ = self.model  # raises at once while there is none
        self.current = None if request.adapter is None else model
        try:
            return await self._batcher.submit(request)
        except (EngineError, CancelledGenerationError):
            raise
        except Exception as error:
            raise describe_failure(error, "generation_failed") from error

    async def _answer_batch(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        return await self.in_turn(lambda: self.model.answer(requests))

    def status(self) -> dict[str, Any]:
        """What `GET /status` answers; memory in MiB, times in milliseconds."""
        model = self._model
        mode = "base" if self.current is None else "finetuned"
        return {
            "loaded": model is not None,
            "mode": mode if model else None,
            "adapter": self.current,
            "model_name": self.spec.name,
            "device": model.device if model else None,
            "memory_mb": model.memory_mb() if model else None,
            "loading_percent": self.progress.percent,
            "load_ms": self.progress.load_ms,
            "error": None if self.error is None else {"code": self.error.code, "message": self.error.message},
        }


def describe_failure(error: Exception, code: str) -> EngineError:
    """The failure without what only the log may say (paths, traces)."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return EngineError("out_of_memory", "the device has not enough free memory")
    return EngineError(code, f"{type(error).__name__}; the model server's log has the details")


def guarded(work: Callable[[], T]) -> T:
    """`work`, with any unforeseen failure logged and turned into an EngineError."""
    try:
        return work()
    except (EngineError, ImageError):
        raise
    except Exception as error:
        logger.exception("the model failed")
        raise describe_failure(error, "generation_failed") from error
