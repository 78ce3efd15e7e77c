"""A served instance with the demo's digits loaded, and the numbers that the benchmarks print."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings
from rich.console import Console
from rich.table import Table

from ftproject.system.client import ApiClient
from ftproject.system.demo import DEMO_DIR, MAPPING, TRAINING
from ftproject.system.management.commands.demo import free_port
from ftproject.system.serving import answers

console = Console()
LONG_TRAINING: dict[str, Any] = {**TRAINING, "sft_config": {**TRAINING["sft_config"], "max_steps": 100_000}}


@dataclass
class Instance:
    process: subprocess.Popen[bytes]
    url: str
    api: ApiClient
    first_answer_s: float
    answered_at: float

    def processes(self) -> list[psutil.Process]:
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def web(self) -> psutil.Process:
        return next(process for process in self.processes() if "uvicorn" in process.cmdline())

    def load_digits(self) -> None:
        self.api.upload(DEMO_DIR / "digits.csv")
        self.api.post("/api/datasets/mapping", MAPPING)

    def start_training(self, body: dict[str, Any]) -> int:
        return int(self.api.post("/api/training/start", body)["run_id"])

    def wait_until_training(self, run_id: int, step: int = 1) -> None:
        while True:
            run = self.api.get(f"/api/training/runs/{run_id}")
            if run["status"] == "error":
                sys.exit(f"the training run failed: {run['error']}")
            if run["status"] == "training" and (run["current_step"] or 0) >= step:
                return
            time.sleep(0.2)


@contextmanager
def instance(name: str) -> Iterator[Instance]:
    port = free_port()
    data_dir = Path(settings.DATA_DIR) / name
    log = (Path(settings.DATA_DIR) / f"{name}.log").open("ab")
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), "serve", "--port", str(port)],
        env={**os.environ, "QWEN3VL_DATA_DIR": str(data_dir)},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    while not answers(url):
        if process.poll() is not None:
            sys.exit(f"the server did not start, see {log.name}")
        time.sleep(0.02)
    try:
        yield Instance(process, url, ApiClient(url), time.monotonic() - started, time.time())
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=60)


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def print_table(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    table = Table(title=title)
    for column in ("figure", "measured", "bar"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)
