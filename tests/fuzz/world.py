"""What the fuzzers attack: the application with something of every kind in it, its queue worked between requests."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from django.core.handlers.wsgi import WSGIHandler

from ftproject.core.jobs import Job, claim_job, queued_jobs
from ftproject.core.run_context import execute_one
from ftproject.worker import RUNNERS, load
from inference_app.model_server import model_server
from tests.inference_app.conftest import Stub
from tests.training_app.world import Api, load_dataset
from training_app.models import Adapter

FEW_STEPS: dict[str, Any] = {"sft_config": {"max_steps": 3}, "holdout_fraction": 0.3}
# How the runner of a kind is called when it is not to make its process its own.
IN_THIS_PROCESS = {**RUNNERS, "training": "training_app.runner:execute_training"}
# How many times the usual number of cases; `python -m benchmarks fuzz` wants more.
FACTOR = int(os.environ.get("FUZZ_FACTOR", "1"))
Environ = dict[str, Any]
StartResponse = Callable[..., Any]


def do_next_job(*lanes: bool) -> Job | None:
    """Claims the oldest waiting job of these lanes (of both by default) and does it here, as a run process would."""
    waiting = [job for needs_gpu in lanes or (True, False) for job in queued_jobs(needs_gpu=needs_gpu)]
    if not waiting or not claim_job(waiting[0]):
        return None
    execute_one(load(IN_THIS_PROCESS[waiting[0].KIND]), waiting[0], threading.Event())
    waiting[0].refresh_from_db()
    return waiting[0]


def do_all_jobs() -> int:
    done = 0
    while do_next_job() is not None:
        done += 1
    return done


def populate(folder: Path) -> None:
    """Two data sets, a run of every kind that came to its end, two adapters, a merge, a session."""
    api = Api()
    load_dataset(folder, name="other.csv")
    dataset = load_dataset(folder)
    for _ in range(2):
        assert api.post("/api/training/start", FEW_STEPS).status_code == 200
        do_all_jobs()
    adapter = Adapter.objects.latest("id")
    for body in ({"adapter_path": None}, {"adapter_path": adapter.name}):
        assert api.post("/api/evaluation/run", {**body, "sample_limit": 4}).status_code == 200
    assert api.post("/api/datasets/images/prefetch", {"dataset_id": dataset.pk}).status_code == 202
    do_all_jobs()
    session = api.post("/api/sessions/", {"name": "one", "description": "of many"}).json()
    saved = {"training_config": '{"sft_config": {"max_steps": 2}}', "status": "completed"}
    assert api.post(f"/api/sessions/{session['id']}/save-config", saved).status_code == 200


class LightLaneClock:
    """The time of a request that waits for a light job: while it sleeps, the light lane works."""

    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def sleep(_: float) -> None:
        do_next_job(False)


@contextmanager
def stub_model_server(folder: Path) -> Iterator[None]:
    """The process's own model server over the stub: answers made up, but a process and a socket as in the product."""
    with mock.patch.object(model_server, "command", Stub(folder / "starts").command):
        try:
            yield
        finally:
            model_server.close()
            model_server.yielded_at = 0.0


@contextmanager
def closed_world() -> Iterator[None]:
    """No name resolves (an address that a fuzzer made up must be asked of nobody), and waiting costs no time."""

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is not known here")

    with mock.patch("socket.getaddrinfo", refuse), mock.patch("datasets_app.preflight_services.time", LightLaneClock):
        yield


@dataclass
class Application:
    """The WSGI application as the fuzzer's threads call it, one at a time, and what it did."""

    work_every: int = 7
    calls: int = 0
    jobs: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    handler: Any = field(default_factory=WSGIHandler)
    turn: Any = field(default_factory=threading.Lock)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        with self.turn:
            self.calls += 1
            if self.calls % self.work_every == 0 and do_next_job() is not None:
                self.jobs += 1
            response = self.handler(environ, self.counting(start_response))
            try:
                return [b"".join(response)]
            finally:
                response.close()

    def counting(self, start_response: StartResponse) -> StartResponse:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            code = int(status[:3])
            self.statuses[code] = self.statuses.get(code, 0) + 1
            return start_response(status, headers, *rest)

        return start
