"""The local-request gate: who may drive the server without a key. Pure ASGI, so HTTP and `/ws` share it."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
FORWARDING = frozenset(
    {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"via"}
)
CHECKED = (b"host", b"origin", b"sec-fetch-site")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class LocalGate:
    """Lets local requests through and refuses everything else, whatever address the server is bound to."""

    def __init__(self, app: AsgiApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"} and is_protected(scope["path"]):
            reason = refusal_of(scope)
            if reason:
                await refuse(scope, receive, send, reason)
                return
        await self.app(scope, receive, send)


def is_protected(path: str) -> bool:
    # The API's own documentation pages hold no data, but the admin alone has a login of its own.
    return not path.startswith(("/admin", "/static"))


def refusal_of(scope: Scope) -> str | None:
    """Why the request is not local, or None when it is."""
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    names = [name.lower() for name, _ in headers]
    if FORWARDING & set(names):
        return "it came through a proxy"
    if any(names.count(name) > 1 for name in CHECKED):
        return "a header that decides about it is repeated"
    values = {name.lower(): value.decode("latin-1") for name, value in headers}
    if not peer_is_loopback(scope.get("client")):
        return "it does not come from this machine"
    host = values.get(b"host", "")
    if host_name(host) not in LOCAL_NAMES:
        return "its Host is not localhost, 127.0.0.1 or [::1]"
    return cross_site_reason(scope, host, values)


def cross_site_reason(scope: Scope, host: str, values: dict[bytes, str]) -> str | None:
    """A web page on another site must not drive a local server (CVE-2024-1727 and its kin)."""
    if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
        return None  # the browser keeps the answer from a page of another site: nothing here allows CORS
    site = values.get(b"sec-fetch-site", "none")
    origin = values.get(b"origin")
    if origin is not None and not same_origin(origin, host):
        return "its Origin is another site"
    return None if site in {"none", "same-origin"} else "it comes from another site"


def peer_is_loopback(client: Any) -> bool:
    # None: a unix socket, whose file permissions decide.
    if client is None:
        return True
    try:
        return ip_address(client[0]).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    name, separator, port = host.rpartition(":")
    if separator and port.isdigit():
        return name
    return host


def same_origin(origin: str, host: str) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in {"http", "https"} and parts.netloc == host


async def refuse(scope: Scope, receive: Receive, send: Send, reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4401, "reason": "not a local request"})
        return
    body = json.dumps(
        {
            "type": "urn:qwen3vl:problem:authentication_required",
            "title": "Unauthorized",
            "status": 401,
            "detail": f"This request is not local: {reason}.",
            "instance": scope["path"],
            "code": "authentication_required",
            "hint": "Call it from this machine as http://localhost:PORT or http://127.0.0.1:PORT, without a proxy.",
            "errors": [],
        }
    ).encode()
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})
