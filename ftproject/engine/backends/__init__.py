"""The backends by name; each is imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module

from ftproject.engine.backends.base import Backend, EngineError
from ftproject.engine.device_rules import DeviceFacts, choose_backend

BACKENDS = {
    "transformers": "ftproject.engine.backends.transformers.TransformersBackend",
    "unsloth": "ftproject.engine.backends.unsloth.UnslothBackend",
    "fake": "ftproject.engine.backends.fake.FakeBackend",
}


class BackendError(EngineError):
    """A backend that does not exist or cannot work here."""


def get_backend(name: str, device: DeviceFacts, *, model_name: str | None = None) -> Backend:
    """The backend of that name; `auto` chooses by device and model and never takes the fake one.

    Raises BackendError: backend_unknown, backend_needs_gpu.
    """
    chosen = choose_backend(name, device, model_name or "")
    if chosen not in BACKENDS:
        raise BackendError("backend_unknown", f"there is no backend {name!r}; use auto, {', '.join(BACKENDS)}")
    if chosen == "unsloth" and not device.cuda:
        raise BackendError("backend_needs_gpu", "the unsloth backend needs a CUDA device; use transformers")
    module, _, cls = BACKENDS[chosen].rpartition(".")
    backend: Backend = getattr(import_module(module), cls)()
    return backend
