"""A million rows: upload to ready beside plain Arrow, the web process's memory, other requests meanwhile, pages."""

import gc
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from django.conf import settings

from benchmarks.instance import Instance, instance, print_table

ROWS = 1_000_000
SEED = 20261122
REPEATS = 3
PAGE_SIZE = 20
PAGE_REQUESTS = 100
DISTINCT = 4096
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "seven",
    "grey",
    "birds",
    "watched",
    "from",
    "an",
    "old",
    "wall",
    "near",
    "water",
    "Straße",
    "größte",
    "図書館",
    "naïve",
    "🙂",
]
NASTY = (
    '"said ""yes"", twice"',
    '"two\nlines"',
    '"three\r\nlines, one cell"',
    "NA",
    "null",
    "007",
    "1.0",
    "",
    "  blank",
    "=1+1",
)
COLUMNS = [
    "id",
    "prompt",
    "response",
    "ground_truth",
    "image_url",
    "label",
    "score",
    "note",
    "source",
    "language",
    "created",
    "split",
]

# Plain Arrow as a user would call it: types inferred, both cores.
PLAIN_ARROW = """
import sys, time, pyarrow.parquet
from pyarrow import csv
began = time.perf_counter()
table = csv.read_csv(sys.argv[1], parse_options=csv.ParseOptions(newlines_in_values=True))
pyarrow.parquet.write_table(table, sys.argv[2])
print(time.perf_counter() - began)
"""


def write_rows(path: Path, rows: int = ROWS, seed: int = SEED) -> int:
    """A CSV with quotes, line breaks in cells, unicode and NA; gives its size in bytes."""
    pools = [_pool(random.Random(seed + number), name) for number, name in enumerate(COLUMNS[1:])]
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(",".join(COLUMNS) + "\n")
        for number in range(rows):
            place = draw.getrandbits(60)
            stream.write(str(number))
            for column, pool in enumerate(pools):
                stream.write("," + pool[(place >> (4 * column)) % DISTINCT])
            stream.write("\n")
    return path.stat().st_size


def _pool(draw: random.Random, column: str) -> list[str]:
    return [_cell(draw, column) for _ in range(DISTINCT)]


def _cell(draw: random.Random, column: str) -> str:
    if draw.random() < 0.05:
        return draw.choice(NASTY)
    if column in {"prompt", "response", "ground_truth", "note"}:
        return " ".join(draw.choices(WORDS, k=draw.randint(6, 18)))
    if column == "image_url":
        return f"https://images.example.org/{draw.getrandbits(64):016x}.jpg"
    if column == "score":
        return f"{draw.random():.6f}"
    return draw.choice(WORDS)


class Meanwhile:
    """What the web process weighs, and how long other requests take, while something else goes on."""

    def __init__(self, served: Instance, other_dataset: int) -> None:
        self.web = served.web()
        self.url = served.url
        self.other_dataset = other_dataset
        self.private: list[float] = []
        self.latencies: list[float] = []
        self.done = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        threads = [threading.Thread(target=work) for work in (self._weigh, self._ask)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.done.set()
            for thread in threads:
                thread.join()

    def _weigh(self) -> None:
        while not self.done.wait(0.05):
            self.private.append(self.web.memory_full_info().uss / 2**20)

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            while not self.done.wait(0.02):
                self._timed(client, "GET", "/api/system/health")
                self._timed(client, "GET", "/api/datasets/")
                body = {"dataset_id": self.other_dataset, "page": 3, "page_size": PAGE_SIZE}
                self._timed(client, "POST", "/api/datasets/preview", json=body)

    def _timed(self, client: httpx.Client, method: str, path: str, **options: Any) -> None:
        began = time.perf_counter()
        client.request(method, path, **options).raise_for_status()
        self.latencies.append(1000 * (time.perf_counter() - began))


def resident_peak(process: psutil.Process) -> float:
    """VmHWM: the kernel's own high-water mark of resident memory, in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def plain_arrow_seconds(source: Path) -> float:
    target = source.with_suffix(".plain.parquet")
    printed = subprocess.run(
        [sys.executable, "-c", PLAIN_ARROW, str(source), str(target)], check=True, capture_output=True, text=True
    )
    target.unlink()
    return float(printed.stdout)


def upload_seconds(served: Instance, source: Path) -> tuple[float, int]:
    """From curl's start to its answer: it streams the file as users do, and takes no time of ours."""
    began = time.perf_counter()
    answer = subprocess.run(
        ["curl", "-sS", "--fail-with-body", "-F", f"file=@{source}", f"{served.url}/api/datasets/upload"],  # nosec B607
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - began
    found = served.api.get("/api/datasets/info")
    assert found["num_rows"] == ROWS, answer.stdout
    return seconds, int(found["dataset_id"])


def page_ms(served: Instance) -> tuple[float, float]:
    """Medians of the first and the last page, asked in turn."""
    times: dict[int, list[float]] = {1: [], ROWS // PAGE_SIZE: []}
    for _ in range(PAGE_REQUESTS):
        for page, found in times.items():
            began = time.perf_counter()
            rows = served.api.post("/api/datasets/preview", {"page": page, "page_size": PAGE_SIZE})["rows"]
            found.append(1000 * (time.perf_counter() - began))
            assert rows[-1]["id"] == str(page * PAGE_SIZE - 1)
    first, last = (statistics.median(found) for found in times.values())
    return first, last


def main() -> None:
    gc.freeze()  # a full collection in this process would count as a slow answer
    source = Path(settings.DATA_DIR) / "million.csv"
    size = write_rows(source)
    arrow, uploads, slowest, noise = [], [], [], []
    with instance("datasets") as served:
        # Before any dataset: Arrow's libraries, which the first upload maps, count as growth.
        web = served.web()
        resident, private = web.memory_info().rss / 2**20, web.memory_full_info().uss / 2**20
        served.load_digits()
        digits = served.api.get("/api/datasets/info")["dataset_id"]
        grown: list[tuple[float, float]] = []
        pages: list[tuple[float, float]] = []
        for _ in range(REPEATS):
            beside_arrow = Meanwhile(served, digits)
            with beside_arrow.watching():
                arrow.append(plain_arrow_seconds(source))
            noise.append(max(beside_arrow.latencies))
            meanwhile = Meanwhile(served, digits)
            with meanwhile.watching():
                seconds, dataset_id = upload_seconds(served, source)
            uploads.append(seconds)
            slowest.append(max(meanwhile.latencies))
            grown.append((resident_peak(web) - resident, max(meanwhile.private) - private))
            pages.append(page_ms(served))
            served.api.http.delete(f"/api/datasets/{dataset_id}").raise_for_status()
    source.unlink()
    ratios = sorted(upload / plain for upload, plain in zip(uploads, arrow, strict=True))
    print_table(
        f"Datasets: {ROWS:,} rows x {len(COLUMNS)} columns, {size / 2**20:.0f} MB, {os.cpu_count()} cores",
        [
            ("plain pyarrow.csv + Parquet", each(arrow, "s"), ""),
            ("upload over HTTP to ready", each(uploads, "s"), ""),
            ("... as a ratio of one run", each(ratios, "x"), "<= 2.5 x"),
            ("slowest other request meanwhile", each(slowest, "ms", 0), "< 100 ms"),
            ("... the same requests beside plain Arrow, nothing uploaded", each(noise, "ms", 0), ""),
            ("web process grows: resident", each([pair[0] for pair in grown], "MB", 0), "< 100 MB"),
            ("web process grows: private", each([pair[1] for pair in grown], "MB", 0), "< 100 MB"),
            ("first page of the preview", each([pair[0] for pair in pages], "ms", 1), ""),
            ("last page of the preview", each([pair[1] for pair in pages], "ms", 1), "< 20 ms"),
            ("last / first page", each([pair[1] / pair[0] for pair in pages], "x"), "<= 2 x"),
        ],
    )


def each(values: list[float], unit: str, digits: int = 2) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values) + f" {unit}"
