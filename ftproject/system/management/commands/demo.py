"""`manage.py demo`: serves the product and runs the main job over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console

from ftproject.core.storage import data_path, exports_dir
from ftproject.system.client import ApiClient, ApiError
from ftproject.system.demo import TRAINING, Demo, print_report
from ftproject.system.serving import answers

START_SECONDS = 90
END_SECONDS = 30


class Command(BaseCommand):
    help = "Runs the main job over HTTP (upload, map, train, evaluate, export, compare) and prints a table."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", help="use a server that already runs there instead of starting one")
        parser.add_argument("--max-steps", type=int, help="shorter training, for a quick look")

    def handle(self, *args: Any, **options: Any) -> None:
        console = Console()
        training = with_steps(options["max_steps"])
        try:
            with served(options["url"] or running_url()) as url:
                demo = Demo(ApiClient(url), console, exports_dir())
                report = demo.run(training)
        except ApiError as exc:
            raise CommandError(str(exc)) from None
        print_report(report, console)
        console.print("Look at it all: make serve, then http://127.0.0.1:8000/")


def with_steps(max_steps: int | None) -> dict[str, Any]:
    if max_steps is None:
        return TRAINING
    return {**TRAINING, "sft_config": {**TRAINING["sft_config"], "max_steps": max_steps}}


def running_url() -> str | None:
    """The server that holds our data directory, when one answers."""
    try:
        url = str(json.loads(data_path("run", "serve.lock").read_text())["url"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return url if answers(url) else None


@contextmanager
def served(url: str | None) -> Iterator[str]:
    """The address of a server: the given one, else one that lives as long as the block."""
    if url:
        yield url.rstrip("/")
        return
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            str(Path(settings.BASE_DIR) / "manage.py"),
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        env={**os.environ, "QWEN3VL_DATA_DIR": str(settings.DATA_DIR)},
        start_new_session=True,
    )
    try:
        wait_until_served(process, f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=END_SECONDS)


def wait_until_served(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise CommandError("The server did not start; its reason stands above.")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
