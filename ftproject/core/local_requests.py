"""What makes a request local: its peer, its Host, no proxy on the way, and no page of another site behind it."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import urlsplit

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Every header by which a proxy, a tunnel or a CDN tells of the client behind it; `x-forwarded-*` besides.
FORWARDING = frozenset(
    {
        "forwarded",
        "via",
        "x-real-ip",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-original-forwarded-for",
        "x-original-host",
        "x-envoy-external-address",
        "true-client-ip",
        "cf-connecting-ip",
        "fastly-client-ip",
        "fly-client-ip",
    }
)
# One of these twice means that two parties read two different requests.
SINGLE = ("host", "origin", "sec-fetch-site", "authorization")


@dataclass(frozen=True)
class Headers:
    """The headers of an ASGI scope, looked at once."""

    names: list[str]
    values: dict[str, str]

    @classmethod
    def of(cls, scope: MutableMapping[str, Any]) -> "Headers":
        pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        return cls([name for name, _ in pairs], dict(pairs))

    @property
    def host(self) -> str:
        return self.values.get("host", "")

    @property
    def repeated(self) -> str | None:
        return next((name for name in SINGLE if self.names.count(name) > 1), None)

    @property
    def forwarded(self) -> bool:
        # WSGI reads `X_Real_IP` as `X-Real-IP`.
        names = [name.replace("_", "-") for name in self.names]
        return any(name in FORWARDING or name.startswith("x-forwarded-") for name in names)


def foreign_reason(scope: MutableMapping[str, Any], headers: Headers) -> str | None:
    """Why the request is not local, or None when it is."""
    if headers.forwarded:
        return "it came through a proxy"
    if headers.repeated:
        return f"its header {headers.repeated} is there more than once"
    if not peer_is_loopback(scope.get("client")):
        return "it does not come from this machine"
    if host_name(headers.host) not in LOCAL_NAMES:
        return "its Host is not localhost, 127.0.0.1 or [::1]"
    return cross_site_reason(scope, headers)


def cross_site_reason(scope: MutableMapping[str, Any], headers: Headers) -> str | None:
    """A web page on another site must not drive a local server (CVE-2024-1727 and its kin)."""
    if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
        return None  # the browser keeps the answer from a page of another site: nothing here allows CORS
    origin = headers.values.get("origin")
    if origin is not None and not same_origin(origin, headers.host):
        return "its Origin is another site"
    site = headers.values.get("sec-fetch-site", "none")
    return None if site in {"none", "same-origin"} else "it comes from another site"


def peer_is_loopback(client: Any) -> bool:
    # None: a unix socket, whose file permissions decide.
    if client is None:
        return True
    try:
        address = ip_address(client[0])
    except ValueError:
        return False
    # A socket for both families shows 127.0.0.1 as ::ffff:127.0.0.1, which Python 3.11 does not call loopback.
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def host_name(host: str) -> str:
    name, separator, port = host.rpartition(":")
    if separator and port.isdigit():
        return name
    return host


def same_origin(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:  # "http://[" and its like
        return False
    return parts.scheme in {"http", "https"} and parts.netloc == host
