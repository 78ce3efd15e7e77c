"""Inference: what the stack costs over the engine alone, batching, streaming, switching adapters, unloading."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil

from benchmarks.instance import Instance, instance, print_table, quantiles
from ftproject.system.demo import DEMO_DIR, TRAINING

BASE = "tiny-qwen3-vl"
REQUESTS = 60
TOGETHER = 16
SHORT_TRAINING = {**TRAINING, "sft_config": {**TRAINING["sft_config"], "max_steps": 40}}


def main() -> None:
    with instance("inference") as served:
        served.load_digits()
        adapter = train_adapter(served)
        client = httpx.Client(base_url=served.url, timeout=120, trust_env=False)
        rows = [*overhead(served, client), *concurrency(client), *streaming(client)]
        rows += [*switching(client, adapter), *health(served, client), *unloading(served, client)]
        print_table("Inference, tiny model on the CPU", rows)


def train_adapter(served: Instance) -> str:
    run_id = served.start_training(SHORT_TRAINING)
    served.api.wait_for_run(f"/api/training/runs/{run_id}", lambda run: None)
    return str(served.api.get("/api/training/adapters")["adapters"][-1]["name"])


def picture() -> str:
    row = (DEMO_DIR / "digits.csv").read_text(encoding="utf-8").splitlines()[1]
    return next(cell for cell in row.split('"') if cell.startswith("data:image"))


def chat_body(model: str = BASE, *, tokens: int = 8, text: str = "Describe the image.") -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0}


def ask(client: httpx.Client, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Milliseconds that the client waited, and the answer."""
    began = time.perf_counter()
    answer = client.post("/v1/chat/completions", json=body)
    waited = (time.perf_counter() - began) * 1000
    answer.raise_for_status()
    return waited, answer.json()


def overhead(served: Instance, client: httpx.Client) -> list[tuple[str, str, str]]:
    """What a request takes beyond the same answer from the engine in one process, measured right before and after."""
    began = time.perf_counter()
    ask(client, chat_body())
    first = time.perf_counter() - began
    before = direct_ms()
    waits, engine = [], []
    for _ in range(REQUESTS):
        waited, answer = ask(client, chat_body())
        waits.append(waited)
        engine.append(answer["timings"]["generation_ms"])
    direct = statistics.median([before, direct_ms()])
    median, high = quantiles(waits)
    return [
        ("first request: start of the server process, imports, load", f"{first:.1f} s", ""),
        (f"one request with a picture, {REQUESTS} times", f"median {median:.1f} ms, p99 {high:.1f} ms", ""),
        ("the engine directly, in one process", f"median {direct:.1f} ms", ""),
        ("... difference", f"{median - direct:.1f} ms", "15 ms"),
        (
            "a request over its own generation (picture, tokens and transport)",
            f"{median - statistics.median(engine):.1f} ms",
            "",
        ),
    ]


def direct_ms() -> float:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.inference_direct"],
        input=json.dumps(chat_body()),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(told.stdout.splitlines()[-1])["median_ms"])


def concurrency(client: httpx.Client) -> list[tuple[str, str, str]]:
    """The same requests one after the other, and all at once, twice each in turn."""
    bodies = [chat_body(text=f"Describe the image. {number}", tokens=16) for number in range(TOGETHER)]
    apart, together = [], []
    texts: list[list[str]] = []
    for _ in range(3):
        apart.append(timed(lambda: texts.append([text_of(ask(client, body)[1]) for body in bodies])))
        together.append(timed(lambda: texts.append(all_at_once(client, bodies))))
    same = all(answers == texts[0] for answers in texts)
    ratio = statistics.median(apart) / statistics.median(together)
    return [
        (
            f"{TOGETHER} requests one after the other / at once",
            f"{statistics.median(apart):.2f} / {statistics.median(together):.2f} s",
            "",
        ),
        ("... throughput at once over one after the other", f"{ratio:.1f} x", "3 x"),
        ("... answers equal", "yes" if same else "NO", "yes"),
    ]


def all_at_once(client: httpx.Client, bodies: list[dict[str, Any]]) -> list[str]:
    with ThreadPoolExecutor(len(bodies)) as threads:
        return [text_of(answer) for _, answer in threads.map(lambda body: ask(client, body), bodies)]


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def streaming(client: httpx.Client) -> list[tuple[str, str, str]]:
    """When the first piece is read, against when the engine had it (the end event says so)."""
    delays = []
    for _ in range(20):
        began = time.perf_counter()
        first, prefill = 0.0, 0.0
        with client.stream("POST", "/v1/chat/completions", json=chat_body(tokens=16) | {"stream": True}) as response:
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content") and not first:
                    first = (time.perf_counter() - began) * 1000
                prefill = chunk.get("timings", {}).get("prefill_ms", prefill)
        delays.append(first - prefill)
    median, high = quantiles(delays)
    return [
        (
            "first piece of a stream over the engine's first token",
            f"median {median:.1f} ms, worst {high:.1f} ms",
            "50 ms",
        )
    ]


def switching(client: httpx.Client, adapter: str) -> list[tuple[str, str, str]]:
    """Base and adapter in turn, against the same adapter again and again."""
    began = time.perf_counter()
    _, loaded = ask(client, chat_body(adapter))
    first = (time.perf_counter() - began) * 1000 - loaded["timings"]["generation_ms"]
    steady = [ask(client, chat_body(adapter))[0] for _ in range(30)]
    base = [ask(client, chat_body())[0] for _ in range(30)]
    turns = [ask(client, chat_body(model))[0] for _ in range(30) for model in (BASE, adapter)]
    cost = statistics.median(turns) - (statistics.median(steady) + statistics.median(base)) / 2
    return [
        ("an adapter's first request, its loading included", f"{first:.0f} ms", ""),
        ("a switch between base and adapter", f"{cost:.1f} ms", "20 ms, no reload"),
    ]


def health(served: Instance, client: httpx.Client) -> list[tuple[str, str, str]]:
    """`/api/system/health` while sixteen clients keep asking."""
    busy, waits = threading.Event(), []

    def keep_asking() -> None:
        while not busy.is_set():
            ask(client, chat_body(tokens=16))

    with ThreadPoolExecutor(TOGETHER) as threads:
        for _ in range(TOGETHER):
            threads.submit(keep_asking)
        with httpx.Client(base_url=served.url, trust_env=False) as looking:
            until = time.monotonic() + 8
            while time.monotonic() < until:
                waits.append(timed(lambda: looking.get("/api/system/health")) * 1000)
                time.sleep(0.02)
        busy.set()
    median, high = quantiles(waits)
    return [(f"health while {TOGETHER} clients ask", f"p50 {median:.1f} ms, p99 {high:.1f} ms", "p99 50 ms")]


def unloading(served: Instance, client: httpx.Client) -> list[tuple[str, str, str]]:
    processes = [process for process in served.processes() if "ftproject.engine.server" in process.cmdline()]
    memory = sum(process.memory_info().rss for process in processes) // 2**20
    began = time.perf_counter()
    client.post("/api/system/unload-model").raise_for_status()
    spent = time.perf_counter() - began
    left = [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    return [
        ("unload: memory given back, processes left", f"{memory} MB in {spent:.1f} s, {len(left)} left", "all, 0 left")
    ]


if __name__ == "__main__":
    main()
