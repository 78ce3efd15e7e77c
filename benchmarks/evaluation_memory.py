"""How much an evaluation's process grows with its rows: text rows, the fake backend, a process each."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from django.conf import settings

from benchmarks.instance import print_table

SIZES = (10_000, 100_000, 300_000)
# The fake model answers at once, so rows are all that takes memory; the same process reads, scores, stores, sums up.
CODE = "import sys, django; django.setup(); from benchmarks.evaluation_memory import measure; measure(int(sys.argv[1]))"


def main() -> None:
    rows = []
    for count in SIZES:
        found = run_apart(count)
        text = f"{found['grown_mb']:.0f} MB over {found['before_mb']:.0f} MB; {found['rows_per_s']:.0f} rows/s"
        rows.append((f"{count:,} text rows", text, "bounded"))
    print_table("Growth of the process that evaluates (fake backend), at its peak", rows)


def run_apart(count: int) -> dict[str, Any]:
    folder = Path(settings.DATA_DIR) / f"memory-{count}"
    environment = {**os.environ, "QWEN3VL_DATA_DIR": str(folder), "QWEN3VL_BACKEND": "fake", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(count)],
        cwd=settings.BASE_DIR,
        env=environment,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr.decode()[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return found


def measure(count: int) -> None:
    """Imports the rows, evaluates a few to warm up, then all; prints what the process grew by meanwhile."""
    from django.core.management import call_command

    from benchmarks.evaluation import import_rows

    call_command("migrate", verbosity=0)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sleeps", "until", "evening"]
    texts = [" ".join(words[number % 4 : number % 4 + 9]) for number in range(97)]
    rows = [{"prompt": f"row {number} {texts[number % 97]}", "answer": texts[number % 89]} for number in range(count)]
    import_rows(Path(settings.DATA_DIR) / "rows.csv", rows, columns=())
    del rows
    evaluate_rows(1000)
    with Peak() as peak:
        began = time.monotonic()
        evaluate_rows(None)
        seconds = time.monotonic() - began
    print(json.dumps({"before_mb": peak.before, "grown_mb": peak.highest - peak.before, "rows_per_s": count / seconds}))


def evaluate_rows(limit: int | None) -> None:
    from evaluation_app.plans import EvaluationRequest
    from evaluation_app.runner import execute_evaluation
    from evaluation_app.services import start_evaluation
    from ftproject.core.jobs import claim_job

    run, _ = start_evaluation(request=EvaluationRequest(sample_limit=limit, reuse_base_predictions=False))
    assert claim_job(run)
    execute_evaluation(run, lambda: False)
    run.refresh_from_db()
    assert run.status == "completed", run.error


class Peak:
    """The highest resident memory while it is entered, in MB, looked at a hundred times a second."""

    def __enter__(self) -> "Peak":
        import psutil

        self.process, self.ended = psutil.Process(), threading.Event()
        self.before = self.highest = self.now()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def now(self) -> float:
        return float(self.process.memory_info().rss) / 2**20

    def watch(self) -> None:
        while not self.ended.wait(0.01):
            self.highest = max(self.highest, self.now())

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
