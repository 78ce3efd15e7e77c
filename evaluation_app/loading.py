"""The base model of a run process: imported while rows are read, loaded once, kept for the runs that follow."""

import gc
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from django.conf import settings

from evaluation_app.models import EvaluationRun
from ftproject.core.storage import data_path, models_dir
from ftproject.engine.backends import get_backend
from ftproject.engine.backends.base import Backend, LoadedModel
from ftproject.engine.configs import DeviceFacts, resolve_model
from ftproject.engine.fingerprints import fingerprint_model, package_versions
from ftproject.engine.gpu import device_facts
from ftproject.engine.remote import REMOTE_BACKEND, RemoteError, RemoteServer
from ftproject.engine.remote_model import RemoteModel
from training_app.configuration import device_name
from training_app.remote_settings import remote_settings

logger = logging.getLogger(__name__)


def load_settings(run: EvaluationRun) -> dict[str, Any]:
    """How the run's base is loaded, without what the backend does not look at."""
    kept = dict(run.model_settings)
    if run.backend != "unsloth":
        kept.pop("max_seq_length", None)
    return kept


def same_base(one: EvaluationRun, other: EvaluationRun) -> bool:
    """Whether both runs ask for the same loaded base; an adapter is attached to it in a moment."""
    return (one.model_name, one.backend, load_settings(one)) == (
        other.model_name,
        other.backend,
        load_settings(other),
    )


@dataclass(frozen=True)
class HeldModel:
    """A loaded base with what it was loaded as."""

    facts: dict[str, Any]
    model: LoadedModel


# At most one: two bases would not fit on a device that one fills.
_held: list[HeldModel] = []


def let_go() -> None:
    """Drops the loaded base and gives its memory back."""
    if _held:
        _held.clear()
        gc.collect()


@dataclass
class BaseModel:
    """The base of one run: its facts at once, its libraries in a thread, its weights when the first rows are ready."""

    run: EvaluationRun
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="base"))

    def __enter__(self) -> "BaseModel":
        self._fingerprint: Future[str] = self.threads.submit(self._weights)
        self._backend: Future[Backend | None] = self.threads.submit(self._import)
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def device(self) -> DeviceFacts:
        return device_facts()

    @cached_property
    def place(self) -> tuple[str, str]:
        """The model's name and where it is loaded from."""
        if self.is_remote:
            return self.run.model_name, ""
        return resolve_model(self.run.model_name, self.device, models_dir=models_dir())

    @property
    def is_remote(self) -> bool:
        return self.run.backend == REMOTE_BACKEND

    def _weights(self) -> str:
        """What tells these weights from others; of another server only its address is known."""
        if self.is_remote:
            return f"server {self.run.device}"
        return fingerprint_model(self.place[1], data_path("run", "fingerprints.json"))

    def _import(self) -> Backend | None:
        """Importing torch and transformers takes ten seconds in which rows can be read."""
        if self.is_remote:
            return None
        from ftproject.engine.generation import import_libraries

        backend = get_backend(self.run.backend or settings.BACKEND, self.device, model_name=self.place[0])
        import_libraries(backend)
        return backend

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the answers come from; two runs with equal facts and settings give equal greedy answers."""
        return {
            "model": self.place[0],
            "weights": self._fingerprint.result(),
            "backend": self.run.backend or settings.BACKEND,
            "device": self.run.device if self.is_remote else device_name(self.device),
            "settings": load_settings(self.run),
            "versions": package_versions(),
        }

    def is_held(self) -> bool:
        """Whether an earlier run of this process has loaded it."""
        return bool(_held) and _held[0].facts == self.facts

    def load(self) -> LoadedModel:
        """The loaded base, with the run's adapter beside it; raises EngineError."""
        if self.is_held():
            logger.info("%s is loaded already", self.run.model_name)
        else:
            let_go()
            logger.info("loading %s", self.run.model_name)
            backend = self._backend.result()
            model = backend.load(*self.place, **self.run.model_settings) if backend else connect(self.run)
            _held.append(HeldModel(self.facts, model))
        model = _held[0].model
        if self.run.adapter is not None:
            model.ensure_adapter(self.run.adapter.path)
        return model


def connect(run: EvaluationRun) -> LoadedModel:
    """The base on the server of QWEN3VL_INFERENCE_URL, which a run may outlive; raises EngineError."""
    where = remote_settings()
    if where is None:
        raise RemoteError("inference_server_unreachable", "QWEN3VL_INFERENCE_URL is not set any more")
    adapters = {item.path: (item.name, item.sha256) for item in [run.adapter] if item}
    return RemoteModel(RemoteServer(where), run.model_name, adapters)
