"""The model server process, `python -m ftproject.engine.server`: one base model behind a unix socket, no Django."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from ftproject.engine.configs import choose_backend
from ftproject.engine.gpu import device_facts
from ftproject.engine.parent import die_with_parent
from ftproject.engine.server_app import REQUEST_SECONDS, build_app
from ftproject.engine.server_model import ModelSpec, ServedModel

LEAVE_SECONDS = 10  # a request in flight has this long after SIGTERM


class ModelServer(uvicorn.Server):
    """Leaves on SIGTERM only: Ctrl+C in the terminal is for the web process, which ends this one in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.handle_exit)
        yield


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    die_with_parent(arguments.parent)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    served = ServedModel(read_spec(arguments), arguments.adapters)
    config = uvicorn.Config(
        build_app(served, arguments.images, request_seconds=arguments.request_seconds),
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=LEAVE_SECONDS,
    )
    ModelServer(config).run(sockets=[bind_socket(arguments.socket)])
    # A generation beyond its time still runs in a thread that the interpreter would wait for.
    logging.shutdown()
    os._exit(0)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ftproject.engine.server")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", required=True, help="folder or hub id to load from")
    parser.add_argument("--model-name", required=True, help="the id that requests use")
    parser.add_argument("--images", type=Path, required=True, help="the only folder that file:// images may lie in")
    parser.add_argument("--adapters", type=Path, required=True, help="the only folder that adapters may lie in")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--load-in-4bit", action=argparse.BooleanOptionalAction)
    parser.add_argument("--max-seq-length", type=int)
    parser.add_argument(
        "--request-seconds", type=float, default=REQUEST_SECONDS, help="the longest answer, waiting included"
    )
    parser.add_argument("--parent", type=int, help="pid whose death ends this process")
    return parser.parse_args(argv)


def read_spec(arguments: argparse.Namespace) -> ModelSpec:
    return ModelSpec(
        name=arguments.model_name,
        path=arguments.model,
        backend=choose_backend(arguments.backend, device_facts(), arguments.model_name),
        load_in_4bit=arguments.load_in_4bit,
        max_seq_length=arguments.max_seq_length,
    )


def bind_socket(path: Path) -> socket.socket:
    """A listening unix socket that only this user may open; uvicorn's own would get mode 0666."""
    path.unlink(missing_ok=True)  # left by a killed server: the lease says that no other one lives
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen()
    listener.setblocking(False)
    return listener


if __name__ == "__main__":
    main()
