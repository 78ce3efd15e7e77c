"""Connections on behalf of a user: to checked public addresses only, and none outlives the deadline of its fetch."""

import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
from django.conf import settings

from ftproject.core.addresses import is_public_address

_deadline: ContextVar[float] = ContextVar("deadline")


class FetchError(Exception):
    """An image that was not fetched; `code` is stable, `retriable` says whether asking again can help.

    `unreachable` is the "host:port" that could not even be connected to, else empty.
    """

    def __init__(self, code: str, message: str, *, retriable: bool = False, unreachable: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retriable = retriable
        self.unreachable = unreachable


class AddressRefusedError(FetchError):
    def __init__(self, message: str) -> None:
        super().__init__("image_url_refused", message)


class HostUnreachableError(FetchError):
    """No connection to any address of the host."""

    def __init__(self, host: str, port: int, failure: Exception) -> None:
        late = isinstance(failure, httpcore.TimeoutException)
        reason = "no answer in time" if late else str(failure) or type(failure).__name__
        super().__init__(
            "image_timeout" if late else "image_fetch_failed",
            f"no connection to {host}: {reason}",
            retriable=True,
            unreachable=f"{host}:{port}",
        )


def is_allowed_host(host: str, port: int) -> bool:
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}".lower() in {entry.lower() for entry in settings.IMAGE_ALLOWED_HOSTS}


def vetted_addresses(host: str, port: int) -> list[str]:
    """The addresses of a host, in the resolver's order; one that is not public spoils them all."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        again = isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_AGAIN
        message = f"the host {host!r} was not found"
        raise FetchError("image_fetch_failed", message, retriable=again, unreachable=f"{host}:{port}") from None
    addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    if not is_allowed_host(host, port) and not (addresses and all(map(is_public_address, addresses))):
        # Which address it was stays unsaid: a caller must not learn the names of an internal network.
        raise AddressRefusedError(f"{host!r} is not a public address")
    return addresses


@contextmanager
def deadline_in(seconds: float) -> Iterator[None]:
    """Every wait of this thread on the network ends within `seconds` from now, taken together."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float:
    return _deadline.get() - time.monotonic()


def _within_deadline(timeout: float | None) -> float:
    left = seconds_left()
    if left <= 0:
        raise httpcore.ReadTimeout("the whole transfer took too long")
    return left if timeout is None else min(timeout, left)


class DeadlineStream(httpcore.NetworkStream):
    """A connection whose every wait ends with the deadline of the fetch that uses it."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self.inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.inner.read(max_bytes, _within_deadline(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.inner.write(buffer, _within_deadline(timeout))

    def close(self) -> None:
        self.inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return DeadlineStream(self.inner.start_tls(ssl_context, server_hostname, _within_deadline(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


class VettedBackend(httpcore.NetworkBackend):
    """Connects to the very address it has checked; the name is resolved once, so it cannot change in between."""

    def __init__(self) -> None:
        self.inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in vetted_addresses(host, port):
            try:
                return DeadlineStream(self.inner.connect_tcp(address, port, _within_deadline(timeout)))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
        raise HostUnreachableError(host, port, failure)

    def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        raise AddressRefusedError("a unix socket is no public address")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
