"""Preflight of 100,000 and 400,000 text rows and of a demo set: time, rate, and how memory grows with rows."""

import json
import random
import subprocess
import sys
from pathlib import Path

from django.conf import settings

from benchmarks.instance import print_table
from ftproject.system.demo import DEMO_DIR, MAPPING

SIZES = (100_000, 400_000)
UNUSED: dict[str, object] = {"ground_truth_column": None, "image_separator": None, "mandatory_columns": []}
TEXT_MAPPING = {**UNUSED, "prompt_column": "prompt", "response_column": "answer", "image_url_columns": []}
DEMO_MAPPING = {**UNUSED, **MAPPING}
# In a process of its own, as a run is: peak memory cannot be reset.
MEASURED = """
import json, resource, sys, time
from pathlib import Path
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from datasets_app.preflight.port import training
from datasets_app.preflight.report import make_report
from datasets_app.services import dataset_import, mapping_set
dataset = dataset_import(path=Path(sys.argv[1]))
mapping = mapping_set(dataset=dataset, **json.loads(sys.argv[2]))
plan = training().plan({"holdout_fraction": 0.2})
before, wall, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic(), time.process_time()
report = make_report(
    dataset=dataset, mapping=mapping, plan=plan, should_stop=lambda: False, on_progress=lambda _: None
)
wall, cpu = time.monotonic() - wall, time.process_time() - cpu
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
facts = [report["rows"]["usable"], report["tokens"]["total"], wall, cpu, grown, before / 1024]
print(json.dumps([*facts, "torch" in sys.modules]))
"""


def main() -> None:
    rows = [line(f"{size:,} text rows", measure(text_table(size), TEXT_MAPPING)) for size in SIZES]
    rows.append(line("digits, images inside, none decoded before", measure(DEMO_DIR / "digits.csv", DEMO_MAPPING)))
    print_table("Preflight", rows)


def text_table(rows: int) -> Path:
    """Prompts of 5 to 60 words out of 2,000, with one of 200 answers."""
    chance = random.Random(7)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(2000)]
    path = Path(settings.DATA_DIR) / f"text-{rows}.csv"
    with path.open("w", encoding="utf-8") as stream:
        stream.write("prompt,answer\n")
        for _ in range(rows):
            stream.write(f"{' '.join(chance.choices(words, k=chance.randint(5, 60)))}?,{chance.choice(words[:200])}\n")
    return path


def measure(path: Path, mapping: dict[str, object]) -> list[float]:
    command = [sys.executable, "-c", MEASURED, str(path), json.dumps(mapping)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts: list[float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def line(name: str, facts: list[float]) -> tuple[str, str, str]:
    usable, tokens, wall, cpu, grown, before, torch = facts
    rate = f"{usable / wall:,.0f} rows/s, {tokens / wall:,.0f} tokens/s"
    memory = f"peak grows {grown:.0f} MB from {before:.0f}; torch {'loaded' if torch else 'not loaded'}"
    return name, f"{wall:.1f} s ({cpu:.1f} cpu s), {rate}; {memory}", "60 s" if "100,000" in name else ""
