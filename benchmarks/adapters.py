"""An adapter of the 8B model's size comes in and goes out over HTTP, and rows are shown token by token."""

import json
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from django.conf import settings
from safetensors.numpy import save_file

from benchmarks.instance import Instance, instance, print_table, quantiles

BASE = "unsloth/Qwen3-VL-8B-Instruct-unsloth-bnb-4bit"
RANK = 64
LAYERS = 36
OUTPUTS = {"q_proj": 4096, "k_proj": 1024, "o_proj": 4096}
PREVIEWS = 60
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": RANK,
    "lora_dropout": 0.0,
    "bias": "none",
    "base_model_name_or_path": BASE,
    "target_modules": list(OUTPUTS),
}


def write_zip(path: Path) -> int:
    """A zip of drawn weights for the language attention of the 8B model; its size in bytes."""
    chance = np.random.default_rng(0)
    tensors = {}
    for layer in range(LAYERS):
        for name, out in OUTPUTS.items():
            module = f"base_model.model.model.language_model.layers.{layer}.self_attn.{name}"
            tensors[f"{module}.lora_A.weight"] = chance.normal(size=(RANK, 4096)).astype("float32")
            tensors[f"{module}.lora_B.weight"] = chance.normal(size=(out, RANK)).astype("float32")
    weights = path.with_suffix(".safetensors")
    save_file(tensors, weights)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(weights, "large/adapter_model.safetensors")
        archive.writestr("large/adapter_config.json", json.dumps(CONFIG))
    weights.unlink()
    return path.stat().st_size


class Watch:
    """The growth of the web process's private memory in MB, and the slowest of other answers meanwhile in ms."""

    def __init__(self, server: Instance) -> None:
        self.web, self.url = server.web(), f"{server.url}/api/system/health"
        self.before = self.private_mb()
        self.growth, self.slowest, self.cpu = 0.0, 0.0, sum(self.web.cpu_times()[:2])
        self.done = threading.Event()

    def private_mb(self) -> float:
        return float(psutil.Process(self.web.pid).memory_full_info().uss) / 2**20

    def look(self) -> None:
        with httpx.Client() as client:
            while not self.done.wait(0.05):
                began = time.monotonic()
                client.get(self.url)
                self.slowest = max(self.slowest, (time.monotonic() - began) * 1000)
                self.growth = max(self.growth, self.private_mb() - self.before)


@contextmanager
def watched(server: Instance) -> Iterator[Watch]:
    watch = Watch(server)
    thread = threading.Thread(target=watch.look)
    thread.start()
    try:
        yield watch
    finally:
        watch.done.set()
        thread.join()
        watch.cpu = sum(watch.web.cpu_times()[:2]) - watch.cpu


def measure_import(server: Instance, file: Path) -> tuple[float, Watch]:
    with watched(server) as watch, file.open("rb") as stream:
        began = time.monotonic()
        answer = httpx.post(f"{server.url}/api/training/adapters/import", files={"file": stream}, timeout=300)
        seconds = time.monotonic() - began
    answer.raise_for_status()
    return seconds, watch


def measure_download(server: Instance) -> tuple[float, int, Watch]:
    with watched(server) as watch:
        began, size = time.monotonic(), 0
        with httpx.stream("GET", f"{server.url}/api/training/adapters/large/download", timeout=300) as answer:
            for chunk in answer.iter_bytes():
                size += len(chunk)
        seconds = time.monotonic() - began
    return seconds, size, watch


def measure_previews(server: Instance) -> list[float]:
    server.load_digits()
    times = []
    with httpx.Client() as client:
        for row in range(PREVIEWS):
            began = time.monotonic()
            client.get(f"{server.url}/api/training/token-preview?row={row}").raise_for_status()
            times.append((time.monotonic() - began) * 1000)
    return times[1:]  # the first one imports the tokenizer's library


def figure(seconds: float, watch: Watch) -> str:
    cost = f"{watch.cpu:.1f} cpu s; grows by {watch.growth:.0f} MB"
    return f"{seconds:.1f} s; {cost}; slowest other answer {watch.slowest:.0f} ms"


def main() -> None:
    folder = Path(settings.DATA_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    size = write_zip(folder / "large.zip")
    rows: list[Any] = []
    with instance("adapters") as server:
        seconds, watch = measure_import(server, folder / "large.zip")
        rows.append((f"import of a zip of {size / 2**20:.0f} MB", figure(seconds, watch), "50 MB"))
        seconds, size, watch = measure_download(server)
        rows.append((f"its download, {size / 2**20:.0f} MB", figure(seconds, watch), "50 MB"))
        median, slowest = quantiles(measure_previews(server))
        rows.append(("token preview of a row, median and 99th percentile", f"{median:.0f}, {slowest:.0f} ms", ""))
    print_table("Adapters in and out, tokens of a row", rows)
