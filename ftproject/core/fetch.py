"""The one way to download an image that a user named: public addresses only, with caps on time, bytes and redirects.

requests-hardened was tried: it looks at the first resolved address only, and a drip of one byte per read defeats its
timeouts. Here the check sits where the connection is made (as in Sentry), so redirects and rebinding pass it too.
"""

import re
import ssl
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import certifi
import httpcore
import httpx
from django.conf import settings

from ftproject.core.image_hosts import HostRecord
from ftproject.core.vetted_network import (
    AddressRefusedError,
    FetchError,
    VettedBackend,
    deadline_in,
    is_allowed_host,
    seconds_left,
)

# Host names and addresses in ASCII; no blanks, escapes or IPv6 zones.
_HOST = re.compile(rb"[A-Za-z0-9._:-]+")
MAX_REDIRECTS = 3
MAX_URL_LENGTH = 8192
CONNECT_SECONDS = 3.0
ATTEMPTS = 3
BACKOFF_SECONDS = 0.3
DEFAULT_PORTS = {"http": 80, "https": 443}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
PLAIN = frozenset({"", "identity"})


def fetch_image_bytes(url: str, *, hosts: HostRecord | None = None) -> bytes:
    """The body behind an http(s) URL, not yet known to be an image; raises FetchError.

    IMAGE_TIMEOUT_SECONDS is for everything together: redirects, retries and the whole transfer. (The system's
    resolver keeps its own timeout.) `hosts` remembers, for one run, which hosts are gone.
    """
    target = checked_url(url)
    with deadline_in(settings.IMAGE_TIMEOUT_SECONDS):
        return _fetch_patiently(target, hosts or HostRecord())


def host_of(url: str) -> str:
    """The "host:port" that a URL names, empty when it is none; nothing is checked."""
    try:
        return _netloc(httpx.URL(url))
    except (httpx.InvalidURL, ValueError, KeyError):
        return ""


def _netloc(url: httpx.URL) -> str:
    return f"{url.raw_host.decode('ascii', 'replace')}:{port_of(url)}"


def checked_url(url: str | httpx.URL) -> httpx.URL:
    """Scheme, host and port are such that asking the resolver makes sense; the address itself is checked on connect."""
    if len(str(url)) > MAX_URL_LENGTH:
        raise AddressRefusedError(f"the URL is longer than {MAX_URL_LENGTH} characters")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as exc:
        raise AddressRefusedError(f"not a URL: {exc}") from None
    if parsed.scheme not in DEFAULT_PORTS:
        raise AddressRefusedError(f"only http and https images are fetched, not {parsed.scheme or 'a bare text'!r}")
    if not _HOST.fullmatch(parsed.raw_host):
        raise AddressRefusedError("the URL names no host")
    if parsed.userinfo:
        raise AddressRefusedError("a URL with a user name or password is not fetched")
    if port_of(parsed) not in DEFAULT_PORTS.values() and not is_allowed_host(_name(parsed), port_of(parsed)):
        raise AddressRefusedError(f"port {port_of(parsed)} is neither 80 nor 443 nor in QWEN3VL_IMAGE_ALLOWED_HOSTS")
    return parsed


def _name(url: httpx.URL) -> str:
    """The host as people write it; punycode that stands for no name (`xn--a`) as it is: httpx decodes it only here."""
    try:
        return url.host
    except ValueError:
        return url.raw_host.decode("ascii")


def port_of(url: httpx.URL) -> int:
    return DEFAULT_PORTS[url.scheme] if url.port is None else url.port


def _fetch_patiently(url: httpx.URL, hosts: HostRecord) -> bytes:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _follow(url, hosts)
        except FetchError as exc:
            pause = BACKOFF_SECONDS * 2 ** (attempt - 1)
            if not exc.retriable or attempt == ATTEMPTS or seconds_left() <= pause:
                if exc.unreachable:
                    hosts.note_failure(exc.unreachable)
                raise
            time.sleep(pause)
    raise AssertionError("unreachable")


def _follow(url: httpx.URL, hosts: HostRecord) -> bytes:
    body, location = _visit(url, hosts)
    for _ in range(MAX_REDIRECTS):
        if body is not None:
            return body
        try:
            url = _redirect_target(url, location)
            body, location = _visit(url, hosts)
        except AddressRefusedError as exc:
            raise FetchError("image_redirect_refused", f"the server redirects elsewhere: {exc.message}") from None
    if body is None:
        raise FetchError("image_fetch_failed", f"more than {MAX_REDIRECTS} redirects")
    return body


def _redirect_target(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return checked_url(url.join(location))
    except (httpx.InvalidURL, ValueError):
        raise AddressRefusedError("the target is not a URL") from None


def _visit(url: httpx.URL, hosts: HostRecord) -> tuple[bytes | None, str]:
    host = _netloc(url)
    hosts.check(host)
    found = _exchange(url)
    hosts.note_answer(host)
    return found


def _exchange(url: httpx.URL) -> tuple[bytes | None, str]:
    """One request: its body, or None and where the server sends us instead."""
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    # Compression gains nothing on images and is how a small body becomes a large one.
    headers = [("User-Agent", "qwen3vl-finetuning"), ("Accept", "image/*"), ("Accept-Encoding", "identity")]
    timeout = {"connect": CONNECT_SECONDS, "read": None, "write": None, "pool": settings.IMAGE_TIMEOUT_SECONDS}
    with (
        _readable_errors(),
        _pool(tuple(settings.IMAGE_ALLOWED_HOSTS)).stream(
            "GET", target, headers=headers, extensions={"timeout": timeout}
        ) as response,
    ):
        answered = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        if response.status in REDIRECTS and b"location" in answered:
            return None, answered[b"location"]
        _check_status(response.status)
        return _read_body(response.iter_stream(), answered), ""


def _check_status(status: int) -> None:
    if status != 200:
        raise FetchError("image_fetch_failed", f"the server answered {status}", retriable=status in TRY_AGAIN)


def _read_body(chunks: Iterable[bytes], headers: dict[bytes, str]) -> bytes:
    limit = settings.IMAGE_MAX_MB * 1024 * 1024
    announced = headers.get(b"content-length", "")
    coding = headers.get(b"content-encoding", "").strip().lower()
    if announced.isdigit() and int(announced) > limit:
        raise _too_large("image_too_large")
    body = bytearray()
    for chunk in _decompressed(chunks, coding, limit):
        body += chunk
        if len(body) > limit:
            raise _too_large("image_too_large" if coding in PLAIN else "image_decompression_bomb")
    return bytes(body)


def _too_large(code: str) -> FetchError:
    unpacked = " once decompressed" if code == "image_decompression_bomb" else ""
    return FetchError(code, f"the image is larger than {settings.IMAGE_MAX_MB} MB{unpacked}")


def _decompressed(chunks: Iterable[bytes], coding: str, limit: int) -> Iterator[bytes]:
    if coding in PLAIN:
        yield from chunks
        return
    if coding not in {"gzip", "x-gzip", "deflate"}:
        raise FetchError("image_fetch_failed", f"the server answered in the content coding {coding[:40]!r}")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        for chunk in chunks:
            yield inflater.decompress(chunk, limit + 1)
    except zlib.error:
        raise FetchError("image_fetch_failed", "the compressed answer is damaged") from None


@contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except (httpcore.TimeoutException, TimeoutError):
        message = f"no whole image within the time allowed ({settings.IMAGE_TIMEOUT_SECONDS} s in all)"
        raise FetchError("image_timeout", message, retriable=True) from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as exc:
        reason = str(exc) or type(exc).__name__
        raise FetchError("image_fetch_failed", f"the transfer failed: {reason}", retriable=True) from None


@lru_cache(maxsize=1)
def _pool(allowed_hosts: tuple[str, ...]) -> httpcore.ConnectionPool:
    """Kept connections save a handshake per image; another allow list starts with none of the old ones."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return httpcore.ConnectionPool(
        ssl_context=context,
        max_connections=max(settings.IMAGE_CONCURRENCY, 4),
        max_keepalive_connections=settings.IMAGE_CONCURRENCY,
        keepalive_expiry=10.0,
        network_backend=VettedBackend(),
    )
