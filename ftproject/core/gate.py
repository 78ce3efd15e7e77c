"""The gate before everything but the admin: local requests need no key, all others an API key with the route's scope.

Pure ASGI, so that HTTP and `/ws` share it, and a refused request costs neither a thread nor its body.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any, Protocol

from django.conf import settings
from django.urls import Resolver404

from ftproject.core.api_keys import BRAND, CREATE_HINT
from ftproject.core.callers import LOCAL, SCOPE_KEY, Caller
from ftproject.core.errors import ForbiddenError, NotFoundError, ProductError, UnauthorizedError
from ftproject.core.keyed_socket import KeyedSocket
from ftproject.core.local_requests import LOCAL_NAMES, Headers, foreign_reason, host_name
from ftproject.core.models import ApiKey, AuditEntry, KeyScope
from ftproject.core.problem import CONTENT_TYPE, openai_error, problem_body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
ScopeOfRequest = Callable[[str, str], KeyScope]

BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
CLOSE_CODES = {401: 4401, 403: 4403, 429: 4429}
CHALLENGES = {401: "invalid_token", 403: "insufficient_scope"}  # RFC 6750
LOCAL_HINT = (
    "From this machine call http://localhost:PORT or http://127.0.0.1:PORT without a proxy. From elsewhere send "
    "'Authorization: Bearer KEY'; `manage.py api_key create NAME --scope read|run|admin` makes a key."
)


class Keys(Protocol):
    async def judge(self, key: str, peer: str) -> ApiKey:
        """The row of a key that is good now; a ProductError says why not."""


class Gate:
    """Lets local requests and those with a good key through, and tells the application whose they are."""

    def __init__(self, app: AsgiApp, *, keys: Keys, scope_of: ScopeOfRequest) -> None:
        self.app, self.keys, self.scope_of = app, keys, scope_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in {"http", "websocket"}:
            try:
                scope[SCOPE_KEY] = await self.admit(scope)
            except ProductError as refusal:
                await refuse(scope, receive, send, refusal)
                return
        if scope["type"] == "websocket" and scope[SCOPE_KEY].kind == AuditEntry.CallerKind.KEY:
            await self.serve_socket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = key_of(Headers.of(scope)) or ""
        async with KeyedSocket(receive, send, lambda: self.keys.judge(key, peer_of(scope))).watched() as socket:
            await self.app(scope, socket.receive, socket.send)

    async def admit(self, scope: Scope) -> Caller:
        headers, path = Headers.of(scope), path_of(scope)
        if is_below(path, "/static"):
            return LOCAL
        if is_below(path, "/admin"):
            require_admin_host(headers)
            return LOCAL
        return await self.caller_of(scope, headers)

    async def caller_of(self, scope: Scope, headers: Headers) -> Caller:
        reason = foreign_reason(scope, headers)
        key = key_of(headers)
        # OpenAI's clients cannot be told to send none, so a local request may carry anything. But what looks like
        # a key of ours is judged: whoever tries a key on the server must see what it will do elsewhere.
        if reason is None and (key is None or not key.startswith(BRAND)):
            return LOCAL
        if key is None:
            raise UnauthorizedError(f"This request is not local: {reason}.", hint=LOCAL_HINT)
        row = await self.keys.judge(key, peer_of(scope))
        self.require_scope(scope, row)
        return Caller(AuditEntry.CallerKind.KEY, row.prefix)

    def require_scope(self, scope: Scope, key: ApiKey) -> None:
        if scope["type"] == "websocket":
            return  # it only listens, which every scope may
        try:
            needed = self.scope_of(scope["method"], path_of(scope))
        except Resolver404:
            raise NotFoundError(f"There is no route {scope['path']}.", hint="See /api/docs for the routes.") from None
        if KeyScope(key.scope).allows(needed):
            return
        raise ForbiddenError(
            f"The API key {key.prefix} has the scope {key.scope}; this request needs {needed.value}.",
            code="insufficient_scope",
            hint=CREATE_HINT.replace("read|run|admin", needed.value),
            extra={"needed_scope": needed.value},
        )


def path_of(scope: Scope) -> str:
    """The path as Django's URL conf will see it: without the prefix that a server was told (`--root-path`)."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def peer_of(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else ""


def key_of(headers: Headers) -> str | None:
    match = BEARER.fullmatch(headers.values.get("authorization", ""))
    return match[1] if match and headers.repeated is None else None


def require_admin_host(headers: Headers) -> None:
    """The admin has a login, but a name of somebody else that leads here (DNS rebinding) must not even reach that.

    An address cannot be rebound; names other than localhost are the owner's to list.
    """
    name = host_name(headers.host).lower()
    if headers.repeated != "host" and (name in LOCAL_NAMES or is_address(name) or name in settings.ADMIN_HOSTS):
        return
    raise ForbiddenError(
        f"The admin does not answer under the name {name[:200]!r}.",
        code="host_not_allowed",
        hint="List the name in QWEN3VL_ADMIN_HOSTS, or use localhost or the address of the machine.",
    )


def is_address(name: str) -> bool:
    try:
        ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


async def refuse(scope: Scope, receive: Receive, send: Send, refusal: ProductError) -> None:
    if scope["type"] == "http":
        await answer(scope, send, refusal, "http.response")
        return
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        await answer(scope, send, refusal, "websocket.http.response")
    else:
        code = CLOSE_CODES.get(refusal.status, 4503)
        await send({"type": "websocket.close", "code": code, "reason": refusal.detail[:120]})


async def answer(scope: Scope, send: Send, refusal: ProductError, kind: str) -> None:
    """The refusal as a problem, below /v1 as OpenAI's clients read it."""
    problem = problem_body(
        refusal.status, refusal.code, refusal.detail, scope["path"], hint=refusal.hint, **refusal.extra
    )
    openai = is_below(path_of(scope), "/v1")
    # A path from the wire can hold what is no text; JSON's escapes carry it.
    body = json.dumps(openai_error(problem) if openai else problem).encode()
    headers = {
        "Content-Type": "application/json" if openai else CONTENT_TYPE,
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        **challenge(refusal),
        **refusal.headers,
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": raw})
    await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else body})


def challenge(refusal: ProductError) -> dict[str, str]:
    """RFC 6750: which kind of credentials would do."""
    if refusal.code == "authentication_required":
        return {"WWW-Authenticate": 'Bearer realm="qwen3vl"'}
    error = CHALLENGES.get(refusal.status) if refusal.code != "host_not_allowed" else None
    if error is None:
        return {}
    needed = f', scope="{refusal.extra["needed_scope"]}"' if "needed_scope" in refusal.extra else ""
    return {"WWW-Authenticate": f'Bearer realm="qwen3vl", error="{error}"{needed}'}
