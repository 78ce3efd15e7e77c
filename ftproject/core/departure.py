"""Tells a view's thread that its client has left: WSGI itself never says so."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django.http import HttpRequest

from ftproject.core.errors import ProductError

SCOPE_KEY = "qwen3vl.departure"
Chunk = TypeVar("Chunk")


class ClientGoneError(ProductError):
    """Nobody reads the answer any more; 499 is nginx's word for it."""

    status = 499
    default_code = "client_gone"

    def __init__(self) -> None:
        super().__init__("The client closed the connection before the answer was there.")


class Departure:
    """Set once, from the event loop; what is to be done then must be quick."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._happened = False
        self._then: list[Callable[[], object]] = []

    @property
    def happened(self) -> bool:
        return self._happened

    def when_happened(self, then: Callable[[], object]) -> None:
        """Calls `then` when the client leaves, at once when it has left already."""
        with self._lock:
            if not self._happened:
                self._then.append(then)
                return
        then()

    def happen(self) -> None:
        with self._lock:
            self._happened, waiting = True, self._then
            self._then = []
        for then in waiting:
            then()


def departure_of(request: HttpRequest | Any) -> Departure | None:
    """The request's departure; None under a server that cannot tell (Django's test client)."""
    scope = request.META.get("asgi.scope") or {}
    departure = scope.get(SCOPE_KEY)
    return departure if isinstance(departure, Departure) else None


def while_wanted(request: HttpRequest | Any, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks of a long answer to a GET until its client leaves; the server itself would have the rest made too."""
    departure = departure_of(request)
    if departure is None:
        yield from chunks
        return
    request.META["wsgi.input"].read()  # the watch begins behind a body, and nobody else reads that of a GET
    for chunk in chunks:
        if departure.happened:
            return
        yield chunk
