"""The gate's cases and what the contract's text says of each; written without a look at the gate's code."""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
PEERS: dict[str | None, bool] = {
    "127.0.0.1": True,
    "127.8.8.8": True,
    "::1": True,
    "::ffff:127.0.0.1": True,
    None: True,  # a unix socket
    "10.0.0.7": False,
    "172.17.0.1": False,  # Docker's gateway
    "203.0.113.9": False,
    "0.0.0.0": False,  # noqa: S104
    "::ffff:10.0.0.7": False,
    "::127.0.0.1": False,
    "2001:db8::7": False,
    "fe80::1%eth0": False,
    "testclient": False,
}
HOSTS: dict[str | None, bool] = {
    "localhost": True,
    "localhost:8000": True,
    "127.0.0.1:8000": True,
    "[::1]:8000": True,
    "[::1]": True,
    None: False,
    "": False,
    "LOCALHOST": False,
    "localhost.": False,
    "localhost:abc": False,
    "localhost, evil.example": False,
    "127.1": False,
    "0.0.0.0:8000": False,
    "[::ffff:127.0.0.1]:8000": False,
    "evil.example": False,
    "ft.example.com": False,
}
# None: no such header. True: the same origin, when the Host is one.
ORIGINS: dict[str | None, bool] = {
    None: True,
    "http://{host}": True,
    "https://{host}": True,
    "null": False,
    "": False,
    "file://": False,
    "http://[": False,
    "https://evil.example": False,
    "http://localhost.evil.example": False,
    "http://localhost:3000": False,
}
SITES: dict[str | None, bool] = {
    None: True,
    "same-origin": True,
    "none": True,
    "same-site": False,
    "cross-site": False,
    "something": False,
}
FORWARDED = (
    None,
    "forwarded",
    "via",
    "x-forwarded-for",
    "X-Forwarded-Host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x_forwarded_for",
    "x-real-ip",
    "cf-connecting-ip",
    "true-client-ip",
)
REPEATED = (None, "host", "origin", "sec-fetch-site", "authorization")
# What stands in Authorization, by name; the texts of ours are made by the test. `ours`: it has our form.
KEYS = ("none", "read", "run", "admin", "expired", "revoked", "wrong", "unknown", "malformed", "foreign", "basic")
OURS = frozenset({"read", "run", "admin", "expired", "revoked", "wrong", "unknown", "malformed"})
REFUSED_KEYS = {
    "expired": "expired_api_key",
    "revoked": "revoked_api_key",
    "wrong": "invalid_api_key",
    "unknown": "invalid_api_key",
    "malformed": "invalid_api_key",
    "foreign": "invalid_api_key",
}
RANKS = {"read": 0, "run": 1, "admin": 2}
READING_POSTS = ("/datasets/preview", "/training/token-preview", "/evaluation/compare")
ADMIN_ONLY = ("/system/audit", "/system/unload-model", "/training/adapters/import", "/sessions/import")


@dataclass(frozen=True)
class Route:
    path: str
    methods: frozenset[str]


@dataclass(frozen=True)
class Case:
    method: str
    path: str
    known: bool
    peer: str | None
    host: str | None
    origin: str | None
    site: str | None
    forwarded: str | None
    repeated: str | None
    key: str
    kind: str = "http"
    mapped: bool = True

    def scope(self, keys: dict[str, str]) -> dict[str, Any]:
        given = {
            "host": self.host,
            "origin": self.origin.format(host=self.host) if self.origin is not None else None,
            "sec-fetch-site": self.site,
            "authorization": keys[self.key] or None,
        }
        headers = [(name.encode(), value.encode()) for name, value in given.items() if value is not None]
        headers += [(self.forwarded.encode(), b"203.0.113.9")] if self.forwarded else []
        headers += [(name, value) for name, value in headers if self.repeated and name == self.repeated.encode()]
        client = None if self.peer is None else (self.peer, 54321)
        return {"type": self.kind, "method": self.method, "path": self.path, "headers": headers, "client": client}

    @property
    def repeats(self) -> bool:
        present = {"host": self.host, "origin": self.origin, "sec-fetch-site": self.site}
        return (self.repeated == "authorization" and self.key != "none") or present.get(self.repeated or "") is not None


def expected(case: Case) -> str:
    """`local` or `key` for what passes, else the code of the refusal."""
    if case.key in OURS and not case.repeats:
        return judged(case)  # a key of ours is looked at wherever it comes from
    if is_local(case):
        return "local"
    if case.key in {"none", "basic"} or case.repeats:
        return "authentication_required"
    return judged(case)


def is_local(case: Case) -> bool:
    """Contract, section 8."""
    if not PEERS[case.peer] or not HOSTS[case.host] or case.forwarded is not None or case.repeats:
        return False
    if case.kind == "http" and case.method in {"GET", "HEAD", "OPTIONS"}:
        return True
    return ORIGINS[case.origin] and SITES[case.site]


def judged(case: Case) -> str:
    if case.key in REFUSED_KEYS:
        return REFUSED_KEYS[case.key]
    if not case.known:
        return "not_found"
    return "key" if RANKS[case.key] >= RANKS[needed_scope(case)] else "insufficient_scope"


def needed_scope(case: Case) -> str:
    """docs/api.md, Keys: looking is `read`, working is `run`, taking away and letting in is `admin`."""
    path = case.path.rstrip("/")
    if case.kind == "websocket" or case.method == "OPTIONS":
        return "read"
    if not case.mapped or case.method == "DELETE" or path.endswith(ADMIN_ONLY):
        return "admin"  # a method that the route does not have must not pass for a harmless one
    if case.method in {"GET", "HEAD"}:
        return "read"
    return "read" if path.endswith(READING_POSTS) and "/inference/" not in path else "run"


def routes() -> list[Route]:
    """Every address of the URL conf outside the admin, in both slash forms, with the methods that it has."""
    found = []
    for text, pattern in walk(get_resolver().url_patterns):
        path = "/" + re.sub(r"\(\?P<\w+>[^)]*\)", "7", text).strip("^").replace("\\.", ".").removesuffix("\\Z")
        path = path.removesuffix("$").removesuffix("/?")
        actions = getattr(pattern.callback, "actions", None) or {"get": ""}
        methods = frozenset({method.upper() for method in actions} | ({"HEAD"} if "get" in actions else set()))
        found += [Route(form, methods) for form in dict.fromkeys((path, path.rstrip("/") + "/"))]
    return found


def walk(patterns: list[Any], prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            if str(pattern.pattern) != "admin/":
                yield from walk(pattern.url_patterns, prefix + str(pattern.pattern))
        else:
            yield prefix + str(pattern.pattern), pattern


def every_header(method: str, path: str, kind: str = "http") -> Iterator[Case]:
    """The whole product of the headers on one address, without the repeated ones."""
    for values in itertools.product(PEERS, HOSTS, ORIGINS, SITES, FORWARDED, KEYS):
        peer, host, origin, site, forwarded, key = values
        yield Case(method, path, True, peer, host, origin, site, forwarded, None, key, kind)


def some_headers(
    count: int, method: str, path: str, *, known: bool = True, kind: str = "http", mapped: bool = True
) -> Iterator[Case]:
    """A seeded sample; half of it is local but for the headers that are drawn last, where the rules meet."""
    draw = random.Random(f"{method} {path} {kind}")
    for number in range(count):
        near = number % 2 == 0
        yield Case(
            method,
            path,
            known,
            draw.choice(["127.0.0.1", "::1", "::ffff:127.0.0.1"] if near else list(PEERS)),
            draw.choice(["localhost:8000", "[::1]:8000"] if near else list(HOSTS)),
            draw.choice(list(ORIGINS)),
            draw.choice(list(SITES)),
            draw.choice(FORWARDED) if draw.random() < 0.3 else None,
            draw.choice(REPEATED) if draw.random() < 0.3 else None,
            draw.choice(KEYS),
            kind,
            mapped,
        )
