"""A loopback HTTP server that answers raw bytes per path, so that it can misbehave in every way."""

import contextlib
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

Answer = Callable[["ImageServer"], Iterator[bytes]] | bytes


def response(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = {"Content-Length": str(len(body)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def redirect(location: str) -> bytes:
    return response(b"", "302 Found", Location=location)


class ImageServer:
    """`answers[path]` is bytes to send, or a function that yields them; every request is kept in `requests`."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler(), bind_and_activate=True)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(timeout=5)

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline().decode()
                if not line:
                    return
                headers = {}
                while (header := self.rfile.readline().decode().strip()) != "":
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                path = line.split()[1]
                outer.requests.append((path, headers))
                answer = outer.answers.get(path, response(b"no such path", "404 Not Found"))
                chunks = [answer] if isinstance(answer, bytes) else answer(outer)
                with contextlib.suppress(OSError):
                    for chunk in chunks:
                        self.wfile.write(chunk)

        return Handler


def dripping(body: bytes, pause: float) -> Callable[[ImageServer], Iterator[bytes]]:
    """Sends the head at once and then one byte per `pause` seconds."""

    def drip(_: ImageServer) -> Iterator[bytes]:
        yield f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for byte in body:
            time.sleep(pause)
            yield bytes([byte])

    return drip


def in_turn(*answers: bytes) -> Callable[[ImageServer], Iterator[bytes]]:
    """The first request gets the first answer, the next the next, and the last answer stays."""
    left = list(answers)

    def next_answer(_: ImageServer) -> Iterator[bytes]:
        yield left.pop(0) if len(left) > 1 else left[0]

    return next_answer
