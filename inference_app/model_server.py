"""The web process's one model server: started when first needed, shared by all, gone when a run wants the GPU."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection

from ftproject.core.departure import ClientGoneError, Departure
from ftproject.core.errors import BusyError, InvalidInputError, ProductError, UnavailableError
from ftproject.core.jobs import queued_jobs
from ftproject.core.lease import beat_lease, lease_wanted, release_lease
from ftproject.engine.configs import GenerationParams
from inference_app.chat_format import ChatAnswer, ChatFormatError
from inference_app.device import gpu_busy, run_is_leaving, take_device
from inference_app.model_client import CLIENT_GONE, ServerDiedError, ServerRefusedError
from inference_app.server_process import Command, ServerProcess, ServerSpec, server_command, spawner
from inference_app.session import ServedAdapter, Session, publish_status
from inference_app.turnstile import GivenUp, Turnstile, never

logger = logging.getLogger(__name__)

# Each holds one of the web process's threads while it waits; the rest must stay free for everything else.
MAX_REQUESTS = 32
TURN_SECONDS = 1800.0
POLL_SECONDS = 0.25
BEAT_SECONDS = 2.0
LEAVE_SECONDS = 10.0
# A waiting run looks every 0.2 s; without this pause a request could take the device back before it.
YIELD_SECONDS = 3.0
GONE_SECONDS = 20.0
# The server stands after these: it freed the memory, or gave one answer up.
HARMLESS = frozenset({"out_of_memory", "generation_timeout", "model_loading"})
FAILED_HINT = "Try again: the next request starts a new model server. Its log is logs/model-server.log."
NOT_LOADED: dict[str, Any] = {
    "loaded": False,
    "mode": None,
    "adapter": None,
    "model_name": None,
    "device": None,
    "memory_mb": None,
    "since": None,
    "loading_percent": None,
}


class ModelServer:
    """Thread-safe. `child` and `token` change only in the hands of a thread that is alone in the turnstile."""

    def __init__(self, command: Command = server_command) -> None:
        self.command = command
        self.turnstile = Turnstile()
        self.requests = threading.BoundedSemaphore(MAX_REQUESTS)
        self.child: ServerProcess | None = None
        self.token: str | None = None
        self.beat_at = 0.0
        self.used_at = 0.0
        self.yielded_at = -YIELD_SECONDS
        self.wanted = False  # a run waits for the device: nobody joins those that are being answered

    @contextmanager
    def session(
        self, spec: ServerSpec, *, wait_seconds: float = 0.0, departure: Departure | None = None
    ) -> Iterator[Session]:
        """One request's use of the server for `spec`, beside others; waits `wait_seconds` for the device.

        Raises ConflictError gpu_busy, BusyError, UnavailableError, ClientGoneError, and InvalidInputError with the
        server's code.
        """
        if not self.requests.acquire(blocking=False):
            raise too_many_requests()
        try:
            child = self.enter(spec, wait_seconds, departure)
            try:
                with self.failures_told(child):
                    yield Session(child, departure)
            finally:
                self.leave_turn()
        finally:
            self.requests.release()

    def chat(
        self,
        spec: ServerSpec,
        messages: list[dict[str, Any]],
        params: GenerationParams,
        *,
        adapter: ServedAdapter | None = None,
        wait_seconds: float = 0.0,
        departure: Departure | None = None,
    ) -> ChatAnswer:
        """One answer in a session of its own."""
        with self.session(spec, wait_seconds=wait_seconds, departure=departure) as session:
            return session.chat(messages, params, adapter)

    def enter(self, spec: ServerSpec, wait_seconds: float, departure: Departure | None = None) -> ServerProcess:
        """Comes in beside the others with a server for `spec` running; nothing is held while waiting for the device."""
        began = time.monotonic()

        def gone() -> bool:
            return departure is not None and departure.happened

        while True:
            if not self.turnstile.enter(TURN_SECONDS, gone):
                raise ClientGoneError if gone() else too_many_requests()
            child = self.child
            if child is not None and self.serves(child, spec):
                return child
            self.turnstile.leave()
            if self.start_for(spec, gone):
                continue
            # A run that has ended holds the device until its process is gone; to the user it is over already.
            patience = max(wait_seconds, GONE_SECONDS) if run_is_leaving() else wait_seconds
            if time.monotonic() - began >= patience:
                raise gpu_busy()
            if gone():
                raise ClientGoneError
            time.sleep(POLL_SECONDS)

    def serves(self, child: ServerProcess, spec: ServerSpec) -> bool:
        return child.spec == spec and child.is_alive and not child.failed and not self.wanted

    def start_for(self, spec: ServerSpec, gone: GivenUp = never) -> bool:
        """Alone: makes way for a run that waits, or starts a server for `spec`; False while the device is not ours."""
        if not self.turnstile.take(TURN_SECONDS, gone):
            raise ClientGoneError if gone() else too_many_requests()
        try:
            if gone():  # nobody's request must not take another's model from the device
                raise ClientGoneError
            self.leave_if_wanted()
            return self.running_child(spec) is not None
        finally:
            self.turnstile.give()

    def running_child(self, spec: ServerSpec) -> ServerProcess | None:
        """A living server for `spec`, started when needed; None while somebody else has the device."""
        if self.child is not None and not self.child.is_alive:
            self.report_death(self.child)
            self.stop_child()
        if self.child is not None and self.child.failed:
            self.stop_child()
        if self.child is not None and self.child.spec != spec:
            logger.info("changing the base model from %s to %s", self.child.spec.model_name, spec.model_name)
            self.stop_child()
        if self.child is None:
            self.token = self.token or self.take_device()
            if self.token is None:
                return None
            self.child = self.start_child(spec)
            self.used_at = time.monotonic()  # its first request is not in yet: `tend` must not find it idle
        return self.child

    def start_child(self, spec: ServerSpec) -> ServerProcess:
        try:
            return ServerProcess(spec, self.command)
        except OSError as error:
            logger.exception("the model server could not be started")
            self.leave()
            raise server_failed() from error

    def take_device(self) -> str | None:
        if time.monotonic() - self.yielded_at < YIELD_SECONDS and queued_jobs():
            return None
        return take_device()

    @contextmanager
    def failures_told(self, child: ServerProcess) -> Iterator[None]:
        """Turns what went wrong into an answer; a broken server answers those it has, and no more."""
        try:
            yield
        except ServerRefusedError as error:
            raise self.refusal_of(error, child) from error
        except (ServerDiedError, ChatFormatError) as error:
            child.failed = True
            logger.error("the model server failed: %s\n%s", error, child.last_words())
            raise server_failed() from error

    def refusal_of(self, error: ServerRefusedError, child: ServerProcess) -> ProductError:
        if error.status == CLIENT_GONE:
            return ClientGoneError()
        if error.status < 500:
            return InvalidInputError(error.message, code=error.code)
        logger.error("the model server failed: %s", error)
        child.failed = error.code not in HARMLESS
        return UnavailableError(error.message, code=error.code, hint=FAILED_HINT, headers={"Retry-After": "1"})

    def leave_turn(self) -> None:
        """The end of a request; the last one out makes way for a run, and ends a server that has failed.

        Whether a run waits is what `tend` saw within half a second: asking the database costs every answer 1.5 ms.
        """
        self.used_at = time.monotonic()
        if self.turnstile.leave() or not self.turnstile.take(0.0, first=True):
            return
        try:
            if self.child is not None and (self.child.failed or not self.child.is_alive):
                self.leave(grace_seconds=0.0)
            elif self.wanted:
                self.leave_if_wanted()
        except DatabaseError:
            # The answer stands; `tend` asks again in half a second.
            logger.exception("could not ask whether a run wants the GPU")
        finally:
            self.turnstile.give()

    def leave_if_wanted(self) -> bool:
        self.wanted = self.token is not None and lease_wanted(self.token)
        if not self.wanted:
            return False
        logger.info("a run wants the GPU: the model server leaves")
        self.leave()
        self.wanted = False
        self.yielded_at = time.monotonic()
        return True

    def leave(self, grace_seconds: float = LEAVE_SECONDS) -> None:
        """Ends the server and gives the device back."""
        self.stop_child(grace_seconds)
        token, self.token = self.token, None
        if token is not None:
            release_lease(token)

    def stop_child(self, grace_seconds: float = LEAVE_SECONDS) -> None:
        child, self.child = self.child, None
        if child is not None:
            child.stop(grace_seconds)
            publish_status(loaded=False)

    def report_death(self, child: ServerProcess) -> None:
        logger.error("the model server ended with code %s\n%s", child.process.returncode, child.last_words())

    def tend(self) -> None:
        """Called twice a second: beats the lease, notices a dead or idle server, makes way for a run."""
        token = self.token
        if token is None:
            return
        self.beat(token)
        self.wanted = lease_wanted(token)
        if not self.turnstile.take(0.0, first=True):
            return
        try:
            self.tend_idle()
        finally:
            self.turnstile.give()

    def beat(self, token: str) -> None:
        if time.monotonic() - self.beat_at < BEAT_SECONDS:
            return
        self.beat_at = time.monotonic()
        child = self.child
        if not beat_lease(token) and self.token == token and child is not None:
            # This process slept longer than a lease lasts (a suspended laptop): the device is somebody else's.
            logger.error("the lease was lost: the model server is killed")
            child.kill()

    def tend_idle(self) -> None:
        child = self.child
        if child is None or child.failed or not child.is_alive:
            if child is not None and not child.is_alive:
                self.report_death(child)
            self.leave(grace_seconds=0.0)
        elif not self.leave_if_wanted() and time.monotonic() - self.used_at > settings.INFERENCE_IDLE_SECONDS:
            logger.info("the model server leaves: unused for %s s", settings.INFERENCE_IDLE_SECONDS)
            self.leave()

    def unload(self) -> bool:
        """Frees the device; the request in flight gets ten seconds to end. False when nothing was loaded."""
        child = self.child
        if child is None:
            return False
        if not self.turnstile.take(LEAVE_SECONDS, first=True):
            child.kill()
            if not self.turnstile.take(LEAVE_SECONDS, first=True):
                return True
        try:
            self.leave()
        finally:
            self.turnstile.give()
        return True

    def close(self) -> None:
        """The end of the web process. Runs in a thread: the caller is the event loop, where Django refuses queries."""
        spawner.submit(self._close).result()

    def _close(self) -> None:
        try:
            self.leave(grace_seconds=2.0)
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        """What `GET /api/system/model-status` shows."""
        child = self.child
        if child is None or not child.is_alive:
            return NOT_LOADED
        told = child.read_status()
        since = child.since.isoformat() if child.since else None
        return NOT_LOADED | {name: told[name] for name in NOT_LOADED if name in told} | {"since": since}


def server_failed() -> UnavailableError:
    detail = "The model server ended before it had answered."
    return UnavailableError(detail, code="model_server_failed", hint=FAILED_HINT, headers={"Retry-After": "1"})


def too_many_requests() -> BusyError:
    detail = f"{MAX_REQUESTS} requests are being answered or wait already."
    return BusyError(detail, hint="Try again in a moment.", headers={"Retry-After": "5"})


model_server = ModelServer()
