"""A database locked for longer than anybody waits, and two gpu clusters on a queue that delivers twice.

`LOCKS` says how often the lock is held while a run trains, `ROUNDS` how many batches of runs the two clusters share.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
from django.conf import settings

from benchmarks.instance import print_table
from benchmarks.kills import RECIPE, SEED, Trial
from benchmarks.mortal import Mortal, SurvivalError, database_is_sound, open_database, watching

LOCKS = int(os.environ.get("LOCKS", "2"))
ROUNDS = int(os.environ.get("ROUNDS", "2"))
# Longer than SQLite's busy timeout (20 s) and than a beat may be missing (20 s and 6 to confirm).
LOCK_SECONDS = 35.0
WRITERS = 8
RUNS = 3
LONG = {**RECIPE, "sft_config": {**RECIPE["sft_config"], "max_steps": 100_000}}
SHORT = {**RECIPE, "sft_config": {**RECIPE["sft_config"], "max_steps": 3}}


def main() -> None:
    mortal = Mortal(Path(settings.DATA_DIR) / "contention")
    mortal.start()
    try:
        trial = Trial(mortal, Random(SEED))
        trial.prepare()
        rows = [*locked(mortal), *two_clusters(mortal)]
    finally:
        mortal.end()
    rows.append(("database", "sound" if database_is_sound(mortal.data_dir) else "DAMAGED", "sound"))
    print_table("a locked database, and two clusters", rows)


def locked(mortal: Mortal) -> list[tuple[str, str, str]]:
    """Another writer holds the lock while a run trains and clients write."""
    run_id = int(mortal.api.post("/api/training/start", LONG)["run_id"])
    answers: list[httpx.Response] = []
    for _ in range(LOCKS):
        step = mortal.wait_until_ended(run_id, step=mortal.look(run_id)["current_step"] + 3)["current_step"]
        with ThreadPoolExecutor(WRITERS) as pool, lock_of(mortal.data_dir):
            asked = [pool.submit(create_session, mortal, number) for number in range(WRITERS)]
            time.sleep(LOCK_SECONDS)
            if mortal.look(run_id)["status"] != "training":
                raise SurvivalError("a read during the lock shows no training")
            answers += [answer.result() for answer in asked]
        run = mortal.wait_until_ended(run_id, step=step + 20)
        if run["status"] != "training":
            raise SurvivalError(f"the run is {run['status']} after the lock: {run['error']}")
    mortal.api.post(f"/api/training/runs/{run_id}/stop")
    run = mortal.wait_until_ended(run_id)
    steps = [entry["step"] for entry in mortal.api.get(f"/api/training/runs/{run_id}/metrics")["metrics"]]
    if run["status"] != "completed" or steps != list(range(1, run["current_step"] + 1)):
        raise SurvivalError(f"the run ended {run['status']} with {len(steps)} of {run['current_step']} steps")
    told = [answer.json()["code"] for answer in answers if answer.status_code == 503 and answer.headers["Retry-After"]]
    if told != ["database_busy"] * len(answers):
        raise SurvivalError(f"answers during the lock: {[answer.text for answer in answers]}")
    return [
        (f"lock held {LOCK_SECONDS:.0f} s while a run trains", f"{LOCKS} times; the run went on each time", "goes on"),
        ("writes meanwhile: 503 `database_busy` with Retry-After", f"{len(told)} of {len(answers)}", "all"),
        ("logged steps lost", f"0 of {len(steps)}", "0"),
    ]


def create_session(mortal: Mortal, number: int) -> httpx.Response:
    return httpx.post(f"{mortal.url}/api/sessions/", json={"name": f"s{number}"}, timeout=90, trust_env=False)


@contextmanager
def lock_of(data_dir: Path) -> Iterator[None]:
    with closing(sqlite3.connect(data_dir / "database.sqlite3", timeout=60, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            writer.execute("ROLLBACK")


def two_clusters(mortal: Mortal) -> list[tuple[str, str, str]]:
    """A second queue, started by hand, and every message delivered three times."""
    environment = {**os.environ, "QWEN3VL_DATA_DIR": str(mortal.data_dir), "Q_CLUSTER_NAME": settings.GPU_CLUSTER}
    manage = [sys.executable, str(Path(settings.BASE_DIR) / "manage.py")]
    second = subprocess.Popen([*manage, "qcluster"], env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        time.sleep(5)
        said = subprocess.run(
            [*manage, "doctor", "--json"], env=environment, capture_output=True, text=True, check=False
        )
        codes = [finding["code"] for finding in json.loads(said.stdout)["findings"]]
        with watching(mortal) as seen:
            runs = [run_id for _ in range(ROUNDS) for run_id in one_round(mortal)]
    finally:
        # A cluster beside another has been seen to ignore SIGTERM; `serve` ends its own the same way.
        os.killpg(second.pid, signal.SIGKILL)
        second.wait(timeout=60)
    made = adapters_of(mortal.data_dir, runs)
    if (
        "several_clusters" not in codes
        or made != dict.fromkeys(runs, 1)
        or (seen.run_processes, seen.active_rows) != (1, 1)
    ):
        raise SurvivalError(f"{codes}, adapters {made}, at once {seen}")
    return [
        (
            "runs shared by two clusters, each message three times",
            f"{len(runs)} runs, each made one adapter",
            "one each",
        ),
        ("run processes / active rows at once, at most", f"{seen.run_processes} / {seen.active_rows}", "1 / 1"),
        ("doctor names the second cluster", "yes", "yes"),
    ]


def one_round(mortal: Mortal) -> list[int]:
    runs = [int(mortal.api.post("/api/training/start", SHORT)["run_id"]) for _ in range(RUNS)]
    with closing(sqlite3.connect(mortal.data_dir / "database.sqlite3", timeout=20)) as database, database:
        for _ in range(2):
            database.execute(
                "INSERT INTO django_q_ormq (key, payload, lock) SELECT key, payload, lock FROM django_q_ormq"
            )
    for run_id in runs:
        run: dict[str, Any] = mortal.wait_until_ended(run_id)
        if run["status"] != "completed":
            raise SurvivalError(f"run {run_id}: {run['error']}")
    return runs


def adapters_of(data_dir: Path, runs: list[int]) -> dict[int, int]:
    with closing(open_database(data_dir)) as database:
        found = database.execute("SELECT run_id, COUNT(*) FROM training_app_adapter GROUP BY run_id").fetchall()
    return {run_id: dict(found).get(run_id, 0) for run_id in runs}
