"""Sockets and mixed reads on the web process while a run trains: errors, latency by route, what it costs the training.

LOAD_SECONDS (300), LOAD_SOCKETS (100), LOAD_RATE (50 requests a second) and LOAD_ROUNDS (5) make it longer or shorter.
"""

import asyncio
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import cycle

import httpx
import psutil
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from benchmarks.instance import LONG_TRAINING, Instance, instance, print_table, quantiles

SECONDS = float(os.environ.get("LOAD_SECONDS", "300"))
SOCKETS = int(os.environ.get("LOAD_SOCKETS", "100"))
RATE = float(os.environ.get("LOAD_RATE", "50"))
ROUNDS = int(os.environ.get("LOAD_ROUNDS", "5"))
# Between two loads the run trains alone for a third of the time: the speed of a shared machine drifts.
ALONE_SHARE = 1 / 3
ROUTES = (
    "/api/training/status",
    "/api/training/runs/{run}",
    "/api/system/health",
    "/api/datasets/info",
    "/api/training/runs",
    "/api/datasets/preview/conversations?start=0&count=3",
    "/api/training/runs/{run}/metrics?since_step={step}",
    "/api/system/gpu",
    "/api/training/adapters",
    "/api/training/runs/{run}/events?limit=100",
    "/api/evaluation/runs",
    "/api/system/model-status",
    "/api/datasets",
    "/api/sessions",
    "/api/training/runs/{run}/log",
    "/api/training/status",
)


@dataclass
class Listener:
    """What one socket received: stored ids and how late they came."""

    ids: list[int] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)


@dataclass
class Figures:
    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)
    listeners: list[Listener] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)
    opening: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    loaded_seconds: float = 0.0


class Load:
    """The clients, and what they see."""

    def __init__(self, served: Instance, run_id: int) -> None:
        self.served, self.run_id, self.figures = served, run_id, Figures()
        self.paths: Iterator[str] = cycle(ROUTES)
        # A client asks for the steps that it does not know yet.
        self.known_step = 0

    async def run(self, seconds: float) -> None:
        """All sockets are opened at once, then the requests begin; errors are counted and end nothing."""
        ended, opened, began = asyncio.Event(), asyncio.Semaphore(0), time.perf_counter()
        listeners = [asyncio.create_task(self.listen(opened, ended)) for _ in range(SOCKETS)]
        for _ in listeners:
            await opened.acquire()
        self.figures.opening.append(time.perf_counter() - began)
        await self.under_load(seconds)
        ended.set()
        await asyncio.gather(*listeners)

    async def listen(self, opened: asyncio.Semaphore, ended: asyncio.Event) -> None:
        heard = Listener()
        self.figures.listeners.append(heard)
        try:
            async with connect(self.served.url.replace("http", "ws") + "/ws", proxy=None, open_timeout=30) as socket:
                opened.release()
                hearing = asyncio.create_task(hear(socket, heard))
                await asyncio.wait([hearing, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
                if hearing.done():
                    hearing.result()
                hearing.cancel()
        except (OSError, WebSocketException, TimeoutError) as error:
            self.figures.errors[f"socket: {type(error).__name__}"] += 1
            opened.release()

    async def ask_at_a_rate(self, seconds: float) -> None:
        """Asks on time whether or not earlier answers are in, and counts the wait from when it was due."""
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        async with (
            httpx.AsyncClient(base_url=self.served.url, timeout=30, trust_env=False, limits=limits) as client,
            asyncio.TaskGroup() as asking,
        ):
            began = time.perf_counter()
            for number in range(int(seconds * RATE)):
                due = began + number / RATE
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                asking.create_task(self.ask(client, next(self.paths), due))

    async def ask(self, client: httpx.AsyncClient, route: str, due: float) -> None:
        name = route.partition("?")[0]
        try:
            answer = await client.get(route.format(run=self.run_id, step=self.known_step))
        except httpx.HTTPError as error:
            self.figures.errors[f"{name}: {type(error).__name__}"] += 1
            return
        self.figures.latencies[name].append(time.perf_counter() - due)
        if answer.status_code != 200:
            self.figures.errors[f"{name}: {answer.status_code}"] += 1

    def step(self) -> tuple[float, int]:
        self.known_step = int(self.served.api.get(f"/api/training/runs/{self.run_id}")["current_step"])
        return time.monotonic(), self.known_step

    def train_alone(self, seconds: float) -> None:
        began, before = self.step()
        time.sleep(seconds)
        ended, after = self.step()
        self.figures.alone.append((after - before) / (ended - began))

    async def under_load(self, seconds: float) -> None:
        processes = {"web": self.served.web(), "run": self.run_process(), "clients": psutil.Process()}
        used = {name: cpu_seconds(process) for name, process in processes.items()}
        began, before = self.step()
        await self.ask_at_a_rate(seconds)
        ended, after = self.step()
        self.figures.loaded.append((after - before) / (ended - began))
        self.figures.loaded_seconds += ended - began
        for name, process in processes.items():
            self.figures.cpu[name] += cpu_seconds(process) - used[name]
        full = self.served.web().memory_full_info()
        self.figures.memory.append((full.rss / 2**20, full.uss / 2**20))

    def run_process(self) -> psutil.Process:
        return next(process for process in self.served.processes() if "ftproject.worker" in process.cmdline())

    def stored_ids(self) -> list[int]:
        found: list[int] = []
        while True:
            page = self.served.api.get(
                f"/api/training/runs/{self.run_id}/events", since=found[-1] if found else 0, limit=500
            )
            if not page["events"]:
                return found
            found += [event["id"] for event in page["events"]]


async def hear(socket: ClientConnection, heard: Listener) -> None:
    async for text in socket:
        frame = json.loads(text)
        if frame["type"] != "gpu_stats":
            heard.ids.append(frame["id"])
            heard.delays.append(time.time() - datetime.fromisoformat(frame["timestamp"]).timestamp())


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def sockets_with_gaps(listeners: list[Listener], stored: list[int]) -> int:
    """Sockets whose ids are not exactly what was stored between their first and their last."""
    place = {number: index for index, number in enumerate(stored)}
    return sum(
        bool(heard.ids) and heard.ids != stored[place[heard.ids[0]] : place[heard.ids[-1]] + 1] for heard in listeners
    )


def rows_of(figures: Figures, stored: list[int]) -> list[tuple[str, str, str]]:
    everything = [value for part in figures.latencies.values() for value in part]
    delays = [value for heard in figures.listeners for value in heard.delays]
    alone, loaded = (sum(part) / len(part) for part in (figures.alone, figures.loaded))
    silent = sum(not heard.ids for heard in figures.listeners)
    gaps = sockets_with_gaps(figures.listeners, stored)
    used = ", ".join(f"{name} {seconds / figures.loaded_seconds:.2f}" for name, seconds in figures.cpu.items())
    return [
        ("requests / errors", f"{len(everything)} / {dict(figures.errors) or 0}", "0 errors"),
        ("all routes", in_ms(everything), "p99 < 250 ms"),
        *((f"  {name}", in_ms(values), "") for name, values in sorted(figures.latencies.items())),
        ("sockets opened / silent / with gaps", f"{len(figures.listeners)} / {silent} / {gaps}", "0 / 0"),
        (f"{SOCKETS} sockets opened at once within", f"{max(figures.opening):.2f} s", ""),
        ("events: frames received, delay", f"{len(delays)}, {in_ms(delays)}", ""),
        ("training alone, each time", steps_per_second(figures.alone), ""),
        ("training under load, each time", steps_per_second(figures.loaded), ""),
        ("training slower by", f"{100 * (1 - loaded / alone):.1f} %", "<= 10 %"),
        ("cores used under load", used, ""),
        ("web's memory after each load, resident / private", memory_of(figures.memory), "flat"),
    ]


def in_ms(values: list[float]) -> str:
    if not values:
        return "none"
    median, p99 = quantiles(values)
    return f"p50 {1000 * median:.0f} ms, p99 {1000 * p99:.0f} ms"


def steps_per_second(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f} steps/s ({' '.join(f'{value:.2f}' for value in values)})"


def memory_of(readings: list[tuple[float, float]]) -> str:
    return ", ".join(f"{rss:.0f} / {uss:.0f}" for rss, uss in readings) + " MB"


def main() -> None:
    with instance("load") as served:
        served.load_digits()
        run_id = served.start_training(LONG_TRAINING)
        served.wait_until_training(run_id, step=5)
        load = Load(served, run_id)
        part = SECONDS / ROUNDS
        for _ in range(ROUNDS):
            load.train_alone(part * ALONE_SHARE)
            asyncio.run(load.run(part))
        load.train_alone(part * ALONE_SHARE)
        stored = load.stored_ids()
    print_table(
        f"{SOCKETS} sockets and {RATE:.0f} requests/s for {SECONDS:.0f} s while a run trains",
        rows_of(load.figures, stored),
    )
