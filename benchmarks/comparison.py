"""The comparison of two runs of 500,000 samples: time and memory of the verdict, a page of rows, and the exports."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command

from benchmarks.evaluation_export import MAPPING, ROWS, SEED, sample, write_rows
from benchmarks.instance import print_table

UNUSED: dict[str, Any] = {"ground_truth_column": None, "image_separator": None, "mandatory_columns": []}
# In a process of its own: peak memory cannot be reset, and this is what a web process without numpy grows by.
MEASURED = """
import json, time
from pathlib import Path
import django
django.setup()
from rest_framework.test import APIClient
api = APIClient(HTTP_HOST="localhost")
body = {"baseline_run_id": 1, "candidate_run_id": 2}
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
def timed(act):
    wall, cpu = time.monotonic(), time.process_time()
    size = act()
    return [time.monotonic() - wall, time.process_time() - cpu, peak(), size]
def compare(**options):
    answer = api.post("/api/evaluation/compare", {**body, **options}, format="json")
    assert answer.status_code == 200, answer.content
    return len(answer.content)
def export(kind):
    answer = api.get("/api/evaluation/compare/export", {**body, "format": kind})
    return sum(len(chunk) for chunk in answer.streaming_content)
before = peak()
figures = {"first": timed(compare), "page": timed(lambda: compare(transition="broken", page=5000))}
figures |= {kind: timed(lambda kind=kind: export(kind)) for kind in ("html", "csv")}
print(json.dumps([before, figures]))
"""


def main() -> None:
    call_command("migrate", verbosity=0)
    fill()
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    before, figures = json.loads(done.stdout.splitlines()[-1])
    names = {
        "first": "the comparison, first page of rows",
        "page": "page 5,000 of the broken rows",
        "html": "the HTML page",
        "csv": "the joined rows as CSV",
    }
    rows = [(names[name], line(before, *facts), "") for name, facts in figures.items()]
    print_table(f"Two runs of {ROWS:,} rows", rows)


def line(before: float, wall: float, cpu: float, peak: float, size: int) -> str:
    return f"{wall:.1f} s ({cpu:.1f} cpu s), peak {peak - before:.0f} MB above {before:.0f}, {size / 1e6:.1f} MB"


def fill() -> None:
    """Two finished runs over one table, straight into the database."""
    from datasets_app.services import dataset_import, mapping_set
    from evaluation_app.models import EvaluationRun, Sample

    path = Path(settings.DATA_DIR) / "rows.csv"
    write_rows(path)
    dataset = dataset_import(path=path)
    mapping = mapping_set(dataset=dataset, **{**UNUSED, **MAPPING})
    for number in (1, 2):
        run = EvaluationRun.objects.create(
            dataset=dataset,
            mapping=mapping,
            model_type="base",
            model_name="tiny-qwen3-vl",
            status="completed",
            num_samples=ROWS,
            generation_params={"do_sample": False},
            metric_options={"metrics": [{"name": "cer"}]},
        )
        draw = random.Random(SEED + number)
        Sample.objects.bulk_create((sample(run, index, draw) for index in range(ROWS)), batch_size=2_000)
