"""kill -9 of the run process, the queue, the web process and everything, at random moments of a run's life."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from django.conf import settings

from benchmarks.instance import print_table
from benchmarks.mortal import ENDED, Mortal, Sightings, SurvivalError, database_is_sound, watching
from ftproject.engine.configs import TINY_MODEL_PATH
from ftproject.system.client import ApiError
from ftproject.system.demo import DEMO_DIR, MAPPING

KINDS = tuple(os.environ.get("KILLS_OF", "run queue web all").split())
MOMENTS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("KILLS_SEED", "20261122"))
ROWS = 48
# About as long as its own start, so that moments fall into each of its phases.
RECIPE: dict[str, Any] = {
    "model_config_data": {"model_name": "tiny-qwen3-vl"},
    "sft_config": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 80,
        "save_steps": 5,
        "optim": "adamw_torch",
        "bf16": False,
    },
    "lora_config": {"r": 4},
}
# Stock PEFT in a process of its own: the adapters must load without a line of ours.
LOAD_ADAPTERS = """
import sys
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration
for path in sys.argv[2:]:
    PeftModel.from_pretrained(Qwen3VLForConditionalGeneration.from_pretrained(sys.argv[1]), path)
    print(path)
"""


@dataclass
class Tally:
    """What the kills of one kind did."""

    kills: int = 0
    died: int = 0
    went_on: int = 0
    resumed: int = 0
    begun_anew: int = 0
    completed: int = 0
    equal: int = 0
    settle_seconds: list[float] = field(default_factory=list)


class Trial:
    """A chain of runs on one instance: killed, resumed and killed again, each end compared with the straight run's."""

    def __init__(self, mortal: Mortal, chance: Random, recipe: dict[str, Any] = RECIPE) -> None:
        self.mortal, self.chance, self.recipe = mortal, chance, recipe
        self.straight, self.life, self.trained_seconds = "", 0.0, 0.0

    def prepare(self) -> None:
        """Loads a few digits and trains the straight run, undisturbed."""
        table = few_digits(self.mortal.data_dir / "rows.csv")
        self.mortal.api.upload(table)
        self.mortal.api.post("/api/datasets/mapping", MAPPING)
        began, run_id = time.monotonic(), self.start()
        self.mortal.wait_until_ended(run_id, step=1)
        first_step = time.monotonic()
        run = self.mortal.wait_until_ended(run_id)
        if run["status"] != "completed":
            raise SurvivalError(f"the straight run failed: {run['error']}")
        self.straight = weights_digest(run)
        self.life, self.trained_seconds = time.monotonic() - began, time.monotonic() - first_step

    def start(self) -> int:
        return int(self.mortal.api.post("/api/training/start", self.recipe)["run_id"])

    def kill_at_random(self, kind: str, moments: int) -> Tally:
        tally, run_id = Tally(), self.start()
        while tally.kills < moments:
            self.wait_a_while(run_id)
            run_id = self.kill_once(kind, run_id, tally)
        self.conclude(run_id, tally)
        return tally

    def wait_a_while(self, run_id: int) -> None:
        """Every third moment lies anywhere in a run's life, the others behind its first step: there is more to lose."""
        if self.chance.random() < 1 / 3:
            time.sleep(self.chance.uniform(0.0, self.life))
            return
        step = self.mortal.look(run_id)["current_step"]
        self.mortal.wait_until_ended(run_id, step=step + 1)
        time.sleep(self.chance.uniform(0.0, self.trained_seconds))

    def kill_once(self, kind: str, run_id: int, tally: Tally) -> int:
        """One kill; the run to go on with."""
        if self.mortal.look(run_id)["status"] in ENDED:
            self.conclude(run_id, tally)
            return self.start()
        alive = self.mortal.run_processes()
        if not self.mortal.kill(kind, self.chance):
            return run_id  # no such process yet: a later moment
        tally.kills += 1
        if kind == "all":
            self.mortal.start()
        run, seconds = self.mortal.settled(run_id, alive)
        tally.settle_seconds.append(seconds)
        if run["status"] != "error":
            tally.went_on += 1
            return run_id
        tally.died += 1
        return self.go_on(run_id, tally)

    def go_on(self, run_id: int, tally: Tally) -> int:
        run = self.mortal.look(run_id)
        try:
            answer = self.mortal.api.post(f"/api/training/runs/{run_id}/resume")
        except ApiError as refusal:
            if run["can_resume"] or "not_resumable" not in str(refusal):
                raise SurvivalError(f"run {run_id} says {run['resume_reason']!r}, its resume {refusal}") from refusal
            tally.begun_anew += 1
            return self.start()
        tally.resumed += 1
        return int(answer["run_id"])

    def conclude(self, run_id: int, tally: Tally) -> None:
        """Lets the last run of a chain end; its adapter is the straight run's, byte for byte."""
        run = self.mortal.wait_until_ended(run_id)
        if run["status"] != "completed" or run["current_step"] != run["total_steps"]:
            raise SurvivalError(f"run {run_id} ended at step {run['current_step']} in {run['status']}: {run['error']}")
        tally.completed += 1
        tally.equal += weights_digest(run) == self.straight
        metrics = self.mortal.api.get(f"/api/training/runs/{run_id}/metrics")["metrics"]
        if [entry["step"] for entry in metrics] != list(range(1, run["total_steps"] + 1)):
            raise SurvivalError(f"the curve of run {run_id} has gaps")


def few_digits(path: Path, count: int = ROWS) -> Path:
    with (DEMO_DIR / "digits.csv").open(encoding="utf-8", newline="") as source:
        rows = [row for row, _ in zip(csv.reader(source), range(count + 1), strict=False)]
    with path.open("w", encoding="utf-8", newline="") as target:
        csv.writer(target).writerows(rows)
    return path


def weights_digest(run: dict[str, Any]) -> str:
    return hashlib.sha256((Path(run["adapter_path"]) / "adapter_model.safetensors").read_bytes()).hexdigest()


def adapters_that_load(mortal: Mortal) -> tuple[int, int]:
    """How many adapters are listed, and how many of them stock PEFT loads."""
    paths = [adapter["path"] for adapter in mortal.api.get("/api/training/adapters")["adapters"]]
    result = subprocess.run(
        [sys.executable, "-c", LOAD_ADAPTERS, str(TINY_MODEL_PATH), *paths],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return len(paths), len([line for line in result.stdout.splitlines() if line in paths])


@contextmanager
def trial(data_dir: Path, seed: int = SEED) -> Iterator[Trial]:
    """A prepared trial on an instance of its own."""
    mortal = Mortal(data_dir)
    mortal.start()
    try:
        made = Trial(mortal, Random(seed))
        made.prepare()
        yield made
    finally:
        mortal.end()


def words_of(tally: Tally) -> str:
    return (
        f"{tally.died} runs died, {tally.went_on} went on; {tally.resumed} resumed, {tally.begun_anew} begun anew; "
        f"settled within {max(tally.settle_seconds, default=0):.1f} s; "
        f"{tally.equal} of {tally.completed} adapters are the straight run's"
    )


def report(tallies: dict[str, Tally], seen: Sightings, adapters: tuple[int, int], sound: bool) -> None:
    rows = [(f"{kind}: {tally.kills} kills", words_of(tally), "<= 30 s; all equal") for kind, tally in tallies.items()]
    rows += [
        ("run processes / active rows at once, at most", f"{seen.run_processes} / {seen.active_rows}", "1 / 1"),
        ("looks", str(seen.looks), ""),
        ("adapters listed / loaded by stock PEFT", f"{adapters[0]} / {adapters[1]}", "equal"),
        ("database", "sound" if sound else "DAMAGED", "sound"),
    ]
    print_table("kill -9 at random moments", rows)


def main() -> None:
    data_dir = Path(settings.DATA_DIR) / "kills"
    with trial(data_dir) as made, watching(made.mortal) as seen:
        print(f"the straight run took {made.life:.1f} s", flush=True)
        tallies = {}
        for kind in KINDS:
            tallies[kind] = made.kill_at_random(kind, MOMENTS)
            print(kind, json.dumps(vars(tallies[kind])), flush=True)
        adapters = adapters_that_load(made.mortal)
    report(tallies, seen, adapters, database_is_sound(data_dir))
