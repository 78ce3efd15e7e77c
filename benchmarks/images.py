"""Images: 2,000 from a loopback server with latency, and a hostile image server, every trick of it by its own row."""

import gzip
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import psutil
from django.conf import settings
from django.core.management import call_command
from PIL import Image

from benchmarks.instance import instance, print_table
from benchmarks.slow_images import photo

IMAGES = 2_000
LATENCY = 0.05
BAR = 1.5
LIMIT_SECONDS = 3
PUBLIC = "93.184.216.34"
MAPPING = {"prompt_column": "prompt", "response_column": "response", "image_url_columns": ["image"]}


def bomb(side: int) -> bytes:
    """A PNG of one bit a pixel: nothing on disk, hundreds of megabytes decoded."""
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return stream.getvalue()


@contextmanager
def slow_server() -> Iterator[int]:
    with Popen(
        [sys.executable, "-m", "benchmarks.slow_images", str(LATENCY)], cwd=settings.BASE_DIR, stdout=PIPE
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def write_table(path: Path, cells: list[str]) -> Path:
    path.write_text("prompt,response,image\n" + "".join(f"p,r,{cell}\n" for cell in cells), encoding="utf-8")
    return path


def prefetch_seconds(api: Any) -> float:
    run_id = api.post("/api/datasets/images/prefetch", {})["run_id"]
    while True:
        run = api.get(f"/api/datasets/images/prefetch/{run_id}")
        if run["status"] in {"completed", "error"}:
            assert (run["status"], run["num_images"], run["num_failed"]) == ("completed", IMAGES, 0), run
            return float(run["elapsed_seconds"])
        time.sleep(0.1)


def measure_prefetch(port: int, concurrency: int) -> tuple[float, float]:
    """Seconds of the first run and of a second one, which finds everything in the cache; processes started within."""
    os.environ["QWEN3VL_IMAGE_ALLOWED_HOSTS"] = f"127.0.0.1:{port}"
    os.environ["QWEN3VL_IMAGE_HOST_CONCURRENCY"] = str(concurrency)
    cells = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(IMAGES)]
    table = write_table(Path(settings.DATA_DIR) / "images.csv", cells)
    with instance(f"images-{concurrency}") as served:
        served.api.upload(table)
        served.api.post("/api/datasets/mapping", MAPPING)
        return prefetch_seconds(served.api), prefetch_seconds(served.api)


def prefetch_table() -> None:
    rows = []
    for concurrency in (8, 16):
        with slow_server() as port:
            first, second = measure_prefetch(port, concurrency)
        ideal = LATENCY * IMAGES / concurrency
        figure = f"{first:.1f} s, {first / ideal:.2f} x {ideal:.2f} s"
        rows.append((f"{IMAGES:,} images, {concurrency} at once from one host", figure, f"<= {BAR} x"))
        rows.append(("... again, all in the cache", f"{second:.1f} s", ""))
    print_table(f"Prefetch, {1000 * LATENCY:.0f} ms latency", rows)


class Dials:
    """Notes every connection; one that would leave this machine fails as without a network."""

    def __init__(self) -> None:
        self.addresses: list[tuple[str, int]] = []
        self.connect = socket.socket.connect

    def __enter__(self) -> "Dials":
        connect, addresses = self.connect, self.addresses

        def noting(self: socket.socket, address: Any) -> None:
            if self.family in {socket.AF_INET, socket.AF_INET6}:
                addresses.append((address[0], address[1]))
                if not address[0].startswith("127."):
                    raise OSError(101, "Network is unreachable")
            connect(self, address)

        socket.socket.connect = noting  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        socket.socket.connect = self.connect  # type: ignore[method-assign]


class RebindingResolver:
    """Answers `rebind.test` with a public address first and with loopback ever after."""

    def __init__(self) -> None:
        self.real = socket.getaddrinfo
        self.asked = 0

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host not in {"rebind.test", "mixed.test"}:
            return self.real(host, port, *args, **options)
        self.asked += host == "rebind.test"
        addresses = [PUBLIC, "127.0.0.1"] if host == "mixed.test" else [PUBLIC if self.asked == 1 else "127.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)) for text in addresses]

    def __enter__(self) -> "RebindingResolver":
        socket.getaddrinfo = self
        return self

    def __exit__(self, *_: object) -> None:
        socket.getaddrinfo = self.real


class PeakMemory:
    """The most resident bytes above those at the start."""

    def __enter__(self) -> "PeakMemory":
        self.process = psutil.Process()
        self.start = self.most = self.process.memory_info().rss
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.ended.wait(0.005):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    @property
    def megabytes(self) -> float:
        return float(self.most - self.start) / 2**20


def hostile_cases(server: Any, canary: Any) -> list[tuple[str, str, str]]:
    """(what it does, cell, the code that it must be refused with)."""
    from tests.core.image_server import dripping, redirect, response

    def endless(_: Any) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    tiff = io.BytesIO()
    Image.new("RGB", (8, 8)).save(tiff, "TIFF")
    answers: dict[str, tuple[str, Any, str]] = {
        "/redirect": ("redirect to loopback", redirect(canary.url("/secret")), "image_redirect_refused"),
        "/metadata": ("redirect to a metadata service", redirect("http://169.254.169.254/"), "image_redirect_refused"),
        "/drip": ("one byte each half second", dripping(b"x" * 1000, 0.5), "image_timeout"),
        "/endless": ("endless body", endless, "image_too_large"),
        "/gzip": (
            "gzip bomb, 200 kB for 200 MB",
            response(gzip.compress(bytes(200 * 2**20)), Content_Encoding="gzip"),
            "image_decompression_bomb",
        ),
        "/9000": ("9 kB PNG of 9000 x 9000", response(bomb(9000)), "image_too_many_pixels"),
        "/14000": ("PNG of 14000 x 14000", response(bomb(14000)), "image_too_many_pixels"),
        "/tiff": ("TIFF called PNG", response(tiff.getvalue(), Content_Type="image/png"), "image_not_an_image"),
        "/svg": ("SVG", response(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "image_is_svg"),
        "/html": ("HTML with 200", response(b"<!DOCTYPE html><html>log in</html>"), "image_is_web_page"),
    }
    server.answers |= {path: answer for path, (_, answer, _) in answers.items()}
    return [
        *((what, server.url(path), code) for path, (what, _, code) in answers.items()),
        ("name that rebinds to loopback", "http://rebind.test/x.png", "image_url_refused"),
        ("name with a public and a loopback address", "http://mixed.test/x.png", "image_url_refused"),
        ("loopback itself", canary.url("/secret"), "image_url_refused"),
    ]


def hostile_table() -> None:
    from tests.core.image_server import ImageServer, response

    settings.IMAGE_TIMEOUT_SECONDS = LIMIT_SECONDS
    call_command("migrate", verbosity=0)
    with ImageServer() as server, ImageServer() as canary:
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{server.port}"]
        cases = hostile_cases(server, canary)
        server.answers |= {"/good": response(photo()), "/good?warm": response(photo())}
        prefetch_here(
            [server.url("/good?warm")]
        )  # Arrow, Pillow and the HTTP library are loaded before the measurement
        with Dials() as dials, RebindingResolver(), PeakMemory() as memory:
            began = time.monotonic()
            found, good = prefetch_here([*(cell for _, cell, _ in cases), server.url("/good")])
            seconds = time.monotonic() - began
        inside = [address for address in dials.addresses if address[0].startswith("127.") and address[1] != server.port]
    rows = [(what, found.get(index, "taken"), code) for index, (what, _, code) in enumerate(cases)]
    rows += [
        ("the good image of the last row", good, "ready"),
        ("requests to an internal address", str(len(inside) + len(canary.requests)), "0"),
        ("rows skipped by the preparation of a run", str(skipped_rows()), str(len(cases))),
        ("peak of resident memory above the start", f"{memory.megabytes:.0f} MB", "bounded"),
        ("the whole run", f"{seconds:.1f} s", f"a drip ends after {LIMIT_SECONDS} s"),
    ]
    print_table("Hostile image server", rows)


def prefetch_here(cells: list[str]) -> tuple[dict[int, str], str]:
    """Code of each bad row, and what became of the last one."""
    from datasets_app.prefetch_runner import execute_prefetch
    from datasets_app.prefetch_services import prefetch_start
    from datasets_app.services import dataset_import, mapping_set
    from ftproject.core.jobs import claim_job

    dataset = dataset_import(path=write_table(Path(settings.DATA_DIR) / "hostile.csv", cells))
    mapping_set(dataset=dataset, mandatory_columns=["image"], **MAPPING)
    run, _ = prefetch_start()
    claim_job(run)
    execute_prefetch(run, lambda: False)
    run.refresh_from_db()
    assert run.status == "completed", run.error
    found = dict(run.bad_images.values_list("index", "code"))
    return found, found.get(len(cells) - 1, "ready")


def skipped_rows() -> int:
    from datasets_app.preparation import prepare_rows
    from datasets_app.selectors import require_ready_dataset

    dataset, mapping = require_ready_dataset(dataset_id=None)
    prepared = prepare_rows(
        dataset=dataset, mapping=mapping, limit=None, should_stop=lambda: False, on_progress=lambda done, total: None
    )
    return sum(row.skipped for row in prepared.rows)


def main() -> None:
    hostile_table()
    prefetch_table()
