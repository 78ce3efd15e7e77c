"""A run of 500,000 samples: its exports over HTTP, pages of its samples; and pictures of rows."""

import base64
import csv
import io
import random
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from django.conf import settings
from django.db import connection
from django.utils import timezone
from PIL import Image

from benchmarks.instance import Instance, instance, print_table

ROWS = 500_000
SEED = 20261122
SKIPPED = 0.03
DISTINCT = 4096
COLUMNS = ("id", "prompt", "answer", "image_url", "source", "note")
MAPPING = {"prompt_column": "prompt", "response_column": "answer", "image_url_columns": ["image_url"]}
WORDS = (
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
    "Straße",
    "図書館",
    "=1+1",
)
PAGES = {
    "by row, first page": "",
    "by row, last page": f"page={ROWS // 20}",
    "wrong ones by row": "correct=false",
    "worst first": "sort=worst",
    "worst first, page 10,000": "sort=worst&page=10000",
    "best first": "sort=best",
    "worst of the wrong that training did not see": "sort=worst&correct=false&seen=false",
    "worst by another metric (cer)": "sort=worst&metric=cer",
    "text found nowhere": "q=zebra",
}
PICTURES = {
    "a digit, 28 x 28": ("PNG", "L", (28, 28)),
    "a photo, JPEG of 4000 x 3000": ("JPEG", "RGB", (4000, 3000)),
    "a screenshot, PNG of 1920 x 1080": ("PNG", "RGB", (1920, 1080)),
    "PNG of 1500 x 1500 with transparency": ("PNG", "RGBA", (1500, 1500)),
    "PNG of 6000 x 6000, in a child process": ("PNG", "RGB", (6000, 6000)),
}
REPEATS = 15
SLOW_BYTES_PER_SECOND = 1024 * 1024
SLOW_SECONDS = 15


def texts(draw: random.Random, least: int, most: int) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=draw.randint(least, most))) for _ in range(DISTINCT)]


_PROMPTS, _ANSWERS, _NOTES = (texts(random.Random(SEED + n), *size) for n, size in enumerate(((8, 16), (3, 8), (0, 6))))


def write_rows(path: Path) -> None:
    draw = random.Random(SEED)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for number in range(ROWS):
            url = f"https://images.example.org/{draw.getrandbits(64):016x}.jpg"
            writer.writerow([number, draw.choice(_PROMPTS), draw.choice(_ANSWERS), url, "shop", draw.choice(_NOTES)])


def build_run(database: Path, dataset_id: int) -> int:
    """A completed run with a sample per row, written straight into the instance's database."""
    from datasets_app.models import ColumnMapping
    from evaluation_app.models import EvaluationRun, Sample

    connection.close()
    if connection.vendor == "sqlite":
        connection.settings_dict["NAME"] = str(database)
    run = EvaluationRun.objects.create(
        dataset_id=dataset_id,
        mapping=ColumnMapping.objects.get(dataset_id=dataset_id),
        model_type="base",
        model_name="tiny-qwen3-vl",
        status="completed",
        completed_at=timezone.now(),
        num_samples=ROWS,
        metric_options={"metrics": [{"name": "cer"}, {"name": "chrf"}]},
    )
    draw = random.Random(SEED + 1)
    Sample.objects.bulk_create((sample(run, number, draw) for number in range(ROWS)), batch_size=2_000)
    connection.close()
    return run.pk


def sample(run: Any, number: int, draw: random.Random) -> Any:
    from evaluation_app.models import Sample

    facts = {"run": run, "index": number, "prompt": draw.choice(_PROMPTS), "ground_truth": draw.choice(_ANSWERS)}
    if draw.random() < SKIPPED:
        return Sample(**facts, skipped=True, skipped_reason="mandatory column 'note' empty", num_images=1)
    score = draw.choice((0.0, 1.0, round(draw.random(), 4)))
    return Sample(
        **facts,
        prediction=draw.choice(_ANSWERS),
        exact_match=score == 1.0,
        token_precision=score,
        token_recall=score,
        token_f1=score,
        scores={"cer": round(1.2 - score, 4), "chrf": score},
        score_details={"cer": {"edits": 3, "reference_length": 20}},
        seen_in_training=number % 5 != 0,
        prompt_tokens=90,
        completion_tokens=12,
        finish_reason="stop",
        num_images=1,
    )


class Weight:
    """What the web process gains while something goes on, in MB: private pages sampled, resident by its high-water."""

    def __init__(self, web: psutil.Process) -> None:
        self.web = web

    def private(self) -> float:
        return float(self.web.memory_full_info().uss) / 2**20

    def cpu_seconds(self) -> float:
        times = self.web.cpu_times()
        return float(times.user + times.system)

    @contextmanager
    def watching(self) -> Iterator[list[float]]:
        gained, done, start = [0.0], threading.Event(), self.private()

        def weigh() -> None:
            while not done.wait(0.1):
                gained[0] = max(gained[0], self.private() - start)

        thread = threading.Thread(target=weigh)
        thread.start()
        try:
            yield gained
        finally:
            done.set()
            thread.join()


def read_export(served: Instance, query: str) -> tuple[float, int, float]:
    """Seconds, lines and megabytes of one export, read as fast as it comes."""
    lines = size = 0
    began = time.perf_counter()
    with httpx.stream("GET", f"{served.url}{query}", timeout=120, trust_env=False) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_raw():
            lines += chunk.count(b"\n")
            size += len(chunk)
    return time.perf_counter() - began, lines, size / 2**20


def read_slowly(served: Instance, query: str) -> float:
    """Megabytes that a reader of 1 MB/s has taken before it hangs up."""
    size, began = 0, time.perf_counter()
    with httpx.stream("GET", f"{served.url}{query}", timeout=120, trust_env=False) as answer:
        for chunk in answer.iter_raw(64 * 1024):
            size += len(chunk)
            time.sleep(max(0.0, began + size / SLOW_BYTES_PER_SECOND - time.perf_counter()))
            if time.perf_counter() - began > SLOW_SECONDS:
                break
    return size / 2**20


def page_ms(served: Instance, run_id: int, query: str) -> tuple[float, float]:
    """The first answer, which also counts, and the median of those after it."""
    times = []
    with httpx.Client(base_url=served.url, trust_env=False, timeout=120) as client:
        client.get("/api/system/health")
        for _ in range(REPEATS):
            began = time.perf_counter()
            client.get(f"/api/evaluation/runs/{run_id}/samples?{query}").raise_for_status()
            times.append(1000 * (time.perf_counter() - began))
    return times[0], statistics.median(times[1:])


def measure_exports(served: Instance, run_id: int) -> list[tuple[str, str, str]]:
    weight, rows = Weight(served.web()), []
    # Lines that are no row: the header, or what stands around the list.
    for kind, others in (("csv", 1), ("csv&raw=1", 1), ("json", 2), ("jsonl", 0)):
        cpu = weight.cpu_seconds()
        with weight.watching() as gained:
            seconds, found, size = read_export(served, f"/api/evaluation/export/{run_id}?format={kind}")
        cpu = weight.cpu_seconds() - cpu
        assert found - others == ROWS, (kind, found)
        speed = f"{seconds:.1f} s ({cpu:.1f} cpu s), {ROWS / seconds:,.0f} rows/s"
        rows.append((f"export {kind}: {size:.0f} MB", speed, ">= 20,000 rows/s"))
        rows.append(("... the web process gains, private", f"{gained[0]:.0f} MB", "< 50 MB"))
    with weight.watching() as gained:
        size = read_slowly(served, f"/api/evaluation/export/{run_id}?format=csv")
    rows.append((f"slow reader: {size:.0f} MB in {SLOW_SECONDS} s; gains", f"{gained[0]:.0f} MB", "< 50 MB"))
    return rows


def picture(kind: str, mode: str, size: tuple[int, int]) -> str:
    """A data URI of stripes: as large to decode as any picture, and small in the table."""
    stripes = Image.linear_gradient("L").resize(size).convert(mode)
    stream = io.BytesIO()
    stripes.save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def measure_thumbnails(served: Instance) -> list[tuple[str, str, str]]:
    """Pictures of a table of its own, eight clients at once, and what the web process gains meanwhile."""
    source = Path(settings.DATA_DIR) / "pictures.csv"
    with source.open("w", encoding="utf-8", newline="") as stream:
        pictures = [(name, "truth", picture(*what)) for name, what in PICTURES.items()]
        csv.writer(stream).writerows([("prompt", "answer", "image"), *pictures])
    dataset_id = served.api.upload(source)["dataset_id"]
    mapping = {"prompt_column": "prompt", "response_column": "answer", "image_url_columns": ["image"]}
    served.api.post("/api/datasets/mapping", mapping)
    weight, rows = Weight(served.web()), []
    for index, name in enumerate(PICTURES):

        def fetch(_: int, index: int = index) -> float:
            began = time.perf_counter()
            url = f"{served.url}/api/datasets/{dataset_id}/rows/{index}/images/0"
            httpx.get(url, timeout=120, trust_env=False).raise_for_status()
            return 1000 * (time.perf_counter() - began)

        alone = statistics.median(fetch(0) for _ in range(5))
        with weight.watching() as gained, ThreadPoolExecutor(8) as pool:
            list(pool.map(fetch, range(24)))
        measured = f"{alone:.0f} ms alone; 8 clients: gains {gained[0]:.0f} MB"
        rows.append((f"picture of {name}", measured, "< 100 MB"))
    return rows


def main() -> None:
    with instance("evaluation_export") as served:
        source = Path(settings.DATA_DIR) / "rows.csv"
        write_rows(source)
        dataset_id = served.api.upload(source)["dataset_id"]
        source.unlink()
        served.api.post("/api/datasets/mapping", MAPPING)
        served.api.post("/api/datasets/preview", {"page": 1, "page_size": 20})  # Arrow's libraries are mapped now
        began = time.perf_counter()
        run_id = build_run(Path(settings.DATA_DIR) / "evaluation_export" / "database.sqlite3", dataset_id)
        print(f"{ROWS:,} samples written in {time.perf_counter() - began:.0f} s")
        pages = {name: page_ms(served, run_id, query) for name, query in PAGES.items()}
        exports = measure_exports(served, run_id)
        thumbnails = measure_thumbnails(served)
    shown = [(name, f"{first:.0f} ms, then {median:.0f} ms", "<= 50 ms") for name, (first, median) in pages.items()]
    print_table(f"Evaluation: a run of {ROWS:,} samples", [*exports, *shown, *thumbnails])
