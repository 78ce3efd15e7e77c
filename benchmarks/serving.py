"""The web process: time to the first answer, memory, requests, database connections, health while a run trains."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from benchmarks.instance import LONG_TRAINING, Instance, instance, print_table, quantiles

REQUESTS = 1000
CLIENTS = 8


def latencies(url: str, requests: int) -> list[float]:
    with httpx.Client(trust_env=False, timeout=30) as client:
        found = []
        for _ in range(requests):
            began = time.perf_counter()
            client.get(url).raise_for_status()
            found.append(time.perf_counter() - began)
    return found


def load(url: str) -> tuple[float, float, float]:
    """Requests/s, median and p99 in ms of several clients at once."""
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        parts = list(pool.map(lambda _: latencies(url, REQUESTS // CLIENTS), range(CLIENTS)))
    seconds = time.perf_counter() - began
    median, p99 = quantiles([value for part in parts for value in part])
    return REQUESTS / seconds, 1000 * median, 1000 * p99


def memory(process: psutil.Process) -> str:
    """Resident counts library pages that every process shares; private is what ending this process gives back."""
    full = process.memory_full_info()
    return f"{full.rss / 2**20:.0f} / {full.uss / 2**20:.0f} MB"


def connections(served: Instance) -> int:
    return sum("database.sqlite3" in str(opened.path) for opened in served.web().open_files())


def main() -> None:
    with instance("serving") as served:
        web = served.web()
        first_start = served.first_answer_s
        web_start = served.answered_at - web.create_time()
        empty = memory(web)
        served.load_digits()
        loaded = memory(web)
        rate, median, p99 = load(f"{served.url}/api/system/health")
        after_once = connections(served)
        load(f"{served.url}/api/datasets/info")
        after_twice = connections(served)
        cpu = web.cpu_times()
        began = cpu.user + cpu.system
        load(f"{served.url}/api/training/adapters")
        cpu = web.cpu_times()
        cpu_ms = 1000 * (cpu.user + cpu.system - began) / REQUESTS
        served.wait_until_training(served.start_training(LONG_TRAINING))
        busy = quantiles(latencies(f"{served.url}/api/system/health", 500))
        torch = "libtorch" in Path(f"/proc/{web.pid}/maps").read_text()
        after = memory(web)
    print_table(
        "Web process",
        [
            ("first answer after the web process's start", f"{web_start:.2f} s", "<= 3 s"),
            ("... after `serve` on an empty data directory (migrations)", f"{first_start:.2f} s", ""),
            ("memory at start: resident / private", empty, "<= 120 MB"),
            ("... with a dataset uploaded (Arrow's libraries mapped)", loaded, ""),
            ("... after 3,000 requests and a training run's start", after, ""),
            ("torch loaded", str(torch), "False"),
            (f"health, {CLIENTS} clients", f"{rate:.0f} requests/s, p50 {median:.1f} ms, p99 {p99:.1f} ms", ""),
            ("open database files after 1 / 2 rounds of load", f"{after_once} / {after_twice}", "constant"),
            ("list of adapters", f"{cpu_ms:.1f} cpu ms a request", "<= 4 cpu ms"),
            ("health while a run trains", f"p50 {1000 * busy[0]:.1f} ms, p99 {1000 * busy[1]:.1f} ms", "p99 < 50 ms"),
        ],
    )
