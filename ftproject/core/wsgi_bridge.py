"""Runs Django's WSGI handler in a fixed set of threads below the ASGI server.

Under ASGI Django gives each request its own thread context and with it a new database connection (1,519 in 6 s,
measured); threads that stay keep theirs, and the usual middlewares cost nothing (docs/decisions/001).
"""

import asyncio
import json
from typing import Any, cast

from a2wsgi import WSGIMiddleware

from ftproject.core.departure import SCOPE_KEY, Departure
from ftproject.core.gate import AsgiApp, Receive, Scope, Send
from ftproject.core.problem import error_document, problem_body

# An inference request (32 at most at once) and a slow download hold a thread each; threads start only when needed.
THREADS = 48


class RequestCutOffError(OSError):
    """The client left before its whole body had arrived; Django turns an OSError here into UnreadablePostError."""


class WsgiBridge:
    def __init__(self, wsgi_app: Any) -> None:
        self.app = cast(AsgiApp, WSGIMiddleware(wsgi_app, workers=THREADS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope["headers"]}
        if b"transfer-encoding" in names and b"content-length" not in names:
            await refuse_chunked(scope, send)
            return
        incoming = Incoming(receive)
        scope[SCOPE_KEY] = incoming.departure
        try:
            await self.app(scope, incoming.receive, send)
        finally:
            incoming.forget()


class Incoming:
    """A request's body for a2wsgi, and after it the watch over its client."""

    def __init__(self, receive: Receive) -> None:
        self.departure = Departure()
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None

    async def receive(self) -> Any:
        """a2wsgi takes a disconnect for the end of the body: half an upload would pass for a whole one."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise RequestCutOffError("the client closed the connection")
        if not message.get("more_body", False):
            self._watch = asyncio.create_task(self._until_departure())
        return message

    async def _until_departure(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.departure.happen()

    def forget(self) -> None:
        if self._watch is not None:
            self._watch.cancel()


async def refuse_chunked(scope: Scope, send: Send) -> None:
    problem = problem_body(
        411,
        "length_required",
        "The body came in chunks without a Content-Length.",
        scope["path"],
        hint="Send a Content-Length (curl -F and -d do).",
    )
    document, content_type = error_document(scope["path"], problem)
    body = json.dumps(document).encode()
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 411, "headers": headers})
    await send({"type": "http.response.body", "body": body})
