"""Runs Django's WSGI handler in a fixed set of threads below the ASGI server.

Under ASGI Django gives each request its own thread context and with it a new database connection (1,519 in 6 s,
measured); threads that stay keep theirs, and the usual middlewares cost nothing (docs/decisions/001).
"""

import json
from typing import Any, cast

from a2wsgi import WSGIMiddleware

from ftproject.core.gate import AsgiApp, Receive, Scope, Send
from ftproject.core.problem import problem_body

# Inference that waits for the GPU and slow downloads hold a thread each; threads are started only when needed.
THREADS = 32


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
        await self.app(scope, whole_body(receive), send)


def whole_body(receive: Receive) -> Receive:
    """a2wsgi takes a disconnect for the end of the body: half an upload would pass for a whole one."""

    async def receive_or_fail() -> Any:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestCutOffError("the client closed the connection")
        return message

    return receive_or_fail


async def refuse_chunked(scope: Scope, send: Send) -> None:
    body = json.dumps(
        problem_body(
            411,
            "length_required",
            "The body came in chunks without a Content-Length.",
            scope["path"],
            hint="Send a Content-Length (curl -F and -d do).",
        )
    ).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 411, "headers": headers})
    await send({"type": "http.response.body", "body": body})
