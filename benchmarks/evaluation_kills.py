"""kill -9 at random moments of an evaluation, resumed until it is complete: every row exactly once.

`KILLS` says how many, `KILLS_SEED` which.
"""

import contextlib
import csv
import os
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import httpx
from django.conf import settings

from benchmarks.instance import print_table
from benchmarks.mortal import SETTLE_SECONDS, Mortal, SurvivalError, database_is_sound, open_database
from ftproject.system.client import ApiError
from ftproject.system.demo import DEMO_DIR, MAPPING

KINDS = ("run", "run", "run", "supervisor", "queue", "web", "all")
MOMENTS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("KILLS_SEED", "20261122"))
ROWS = 300
# Rows few at a time: the answering lasts about as long as the start, so moments fall into each phase.
BATCH = "1"
BODY: dict[str, Any] = {"reuse_base_predictions": False, "generation_params": {"max_new_tokens": 8}}


@dataclass
class Tally:
    """What the kills did."""

    kills: dict[str, int] = field(default_factory=dict)
    phases: dict[str, int] = field(default_factory=dict)
    resumed: int = 0
    went_on: int = 0
    runs: int = 0
    settled: list[float] = field(default_factory=list)


def main() -> None:
    tally = survive(MOMENTS, Random(SEED))
    rows = [
        ("moments, by what was killed", counts(tally.kills), ""),
        ("by what the run was doing", counts(tally.phases), ""),
        ("resumed by POST / went on without", f"{tally.resumed} / {tally.went_on}", ""),
        ("from the kill to a settled run", f"at most {max(tally.settled):.1f} s", "30 s"),
        (f"runs of {ROWS} rows completed", str(tally.runs), ""),
        ("rows missing, twice or answered otherwise than undisturbed", "0", "0"),
    ]
    print_table(f"kill -9 at {MOMENTS} random moments (seed {SEED}), then resume", rows)


def counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items()))


def survive(moments: int, chance: Random) -> Tally:
    """Raises SurvivalError for anything that must never be; the instance is ended either way."""
    os.environ["QWEN3VL_EVALUATION_BATCH_SIZE"] = BATCH
    mortal = Mortal(Path(settings.DATA_DIR) / "evaluation-kills")
    mortal.start()
    try:
        return Trial(mortal, chance).go(moments)
    finally:
        mortal.end()


class Trial:
    """Runs on one instance: each killed several times and resumed, its rows compared with an undisturbed run's."""

    def __init__(self, mortal: Mortal, chance: Random) -> None:
        self.mortal, self.chance, self.tally = mortal, chance, Tally()
        self.life, self.expected = 0.0, {}

    expected: dict[int, str]

    def go(self, moments: int) -> Tally:
        self.prepare()
        left = moments
        while left:
            run_id = self.start()
            while left and self.kill_and_resume(run_id):
                left -= 1
            self.finish(run_id)
        if not database_is_sound(self.mortal.data_dir):
            raise SurvivalError("the database is damaged")
        return self.tally

    def prepare(self) -> None:
        """The rows, and the straight run: its answers and how long it lives."""
        table = self.mortal.data_dir / "rows.csv"
        with (DEMO_DIR / "digits.csv").open(newline="") as source, table.open("w", newline="") as target:
            csv.writer(target).writerows(islice(csv.reader(source), ROWS + 1))
        self.mortal.api.upload(table)
        self.mortal.api.post("/api/datasets/mapping", MAPPING)
        began = time.monotonic()
        run_id = self.start()
        self.wait(run_id, {"completed"}, 300)
        self.life = time.monotonic() - began
        self.expected = self.rows_of(run_id)

    def start(self) -> int:
        return int(self.mortal.api.post("/api/evaluation/run", BODY)["run_id"])

    def look(self, run_id: int) -> dict[str, Any]:
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                return self.mortal.api.get(f"/api/evaluation/runs/{run_id}")
            except (httpx.HTTPError, ApiError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def wait(self, run_id: int, statuses: set[str], seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (run := self.look(run_id))["status"] not in statuses:
            if run["status"] == "error" or time.monotonic() > deadline:
                raise SurvivalError(f"run {run_id} is {run['status']}: {run['error']}")
            time.sleep(0.1)
        return run

    def kill_and_resume(self, run_id: int) -> bool:
        """Kills at a moment of the run's life; False when it was complete before, which is no moment."""
        time.sleep(self.chance.uniform(0.0, self.life))
        before = self.look(run_id)
        if before["status"] == "completed":
            return False
        kind = self.chance.choice(KINDS)
        if not self.mortal.kill(kind, self.chance):
            return True
        self.tally.kills[kind] = self.tally.kills.get(kind, 0) + 1
        self.tally.phases[before["status"]] = self.tally.phases.get(before["status"], 0) + 1
        if kind == "all":
            self.mortal.start()
        self.settle(run_id)
        return True

    def settle(self, run_id: int) -> None:
        """Waits until the run has ended or is seen to live; resumes it when it ended in error."""
        began = time.monotonic()
        while True:
            run, seconds = self.look(run_id), time.monotonic() - began
            if run["status"] == "error":
                self.tally.settled.append(seconds)
                return self.resume(run_id)
            alive = run["status"] in {"completed", "queued"} or bool(self.mortal.run_processes())
            if alive and seconds > 3:
                self.tally.went_on += 1
                return None
            if seconds > SETTLE_SECONDS:
                raise SurvivalError(f"run {run_id} is {run['status']} without a process after {seconds:.0f} s")
            time.sleep(0.1)

    def resume(self, run_id: int) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self.mortal.api.post(f"/api/evaluation/runs/{run_id}/resume")
        if self.look(run_id)["status"] == "error":
            self.mortal.api.post(f"/api/evaluation/runs/{run_id}/resume")
        self.tally.resumed += 1

    def finish(self, run_id: int) -> None:
        run = self.wait(run_id, {"completed"}, 300)
        found = self.rows_of(run_id)
        if found != self.expected:
            raise SurvivalError(f"run {run_id} has other rows than the undisturbed one")
        if (run["num_samples"], run["current"], run["num_skipped"]) != (ROWS, ROWS, 0):
            raise SurvivalError(f"run {run_id} counts {run['num_samples']} rows")
        self.tally.runs += 1

    def rows_of(self, run_id: int) -> dict[int, str]:
        """Row number -> answer; every row exactly once."""
        query = 'SELECT "index", prediction FROM evaluation_app_sample WHERE run_id = ?'
        with contextlib.closing(open_database(self.mortal.data_dir)) as database:
            rows = database.execute(query, [run_id]).fetchall()
        if sorted(number for number, _ in rows) != list(range(ROWS)):
            raise SurvivalError(f"run {run_id} does not have every row exactly once")
        return dict(rows)
