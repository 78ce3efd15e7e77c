"""`manage.py evaluate`: refusals in this process; whole runs as processes with a data directory of their own."""

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from datasets_app.models import Dataset
from evaluation_app.models import EvaluationRun
from training_app.models import Adapter

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "ftproject" / "engine" / "assets" / "demo" / "shapes.csv"


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--base"),
        (["--base", "--dataset", "999"], "There is no dataset 999"),
        (["--base", "--rows", "heldout"], "needs an adapter"),
        (["--adapter", "nothing"], "There is no adapter"),
        (["--adapter", "adapter_1", "--adapter", "adapter_1", "--adapter", "x/adapter_1"], "named twice"),
        (["--base", "--limit", "0"], "--limit"),
        (["--base", "--rows", "some"], "--rows"),
        (["--base", "--output", "/nowhere/at/all.csv"], "cannot be written"),
        (["--base", "--positive-label", "yes"], "classification_mode"),
        (["--base", "--model", "gpt2"], "not an allowed model"),
        (["--base", "--dataset", "{dataset}", "--dataset", "999"], "There is no dataset 999"),
        (["--base", "--compare"], "needs two models"),
        (["--base", "--output", "results.xlsx"], "its ending must be one of"),
        (["--base", "--adapter", "adapter_1", "--output", "page.html"], "give --compare too"),
        (["--base", "--adapter", "adapter_1", "--compare", "--seed", "-1"], "--seed"),
        (["--base", "--metric", "rogue_l"], "did you mean 'rouge_l'"),
        (["--base", "--metric", '{"name": "numeric"'], "is no JSON"),
        (["--base", "--metric", '{"name": "numeric", "tolerance": -1}'], "at least 0"),
        (["--base", "--extract", "("], "no RE2 pattern"),
        (["--base", "--confidence"], "classification_mode"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_queued(adapter: Adapter, options: list[str], words: str) -> None:
    options = [option.replace("{dataset}", str(Dataset.objects.get().pk)) for option in options]
    with pytest.raises(CommandError, match=words):
        call_command("evaluate", *options)
    assert EvaluationRun.objects.count() == 0


@pytest.mark.django_db
def test_one_refused_model_of_several_queues_none_of_them(
    dataset: Dataset, make_adapter: Callable[..., Adapter]
) -> None:
    make_adapter(dataset)
    make_adapter(dataset, name="adapter_2", effective=False)
    with pytest.raises(CommandError, match="adapter_2"):
        call_command("evaluate", "--base", "--adapter", "adapter_1", "--adapter", "adapter_2")
    assert EvaluationRun.objects.count() == 0


class Installation:
    """A data directory of its own and its manage.py."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("QWEN3VL_", "DJANGO_"))}
        ours = {"QWEN3VL_DATA_DIR": str(folder / "data"), "QWEN3VL_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
        self.environment = {**inherited, **ours, "OMP_NUM_THREADS": "1"}
        self.manage("migrate", "--verbosity", "0")

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def manage(self, *arguments: str, expected: int = 0) -> tuple[str, str]:
        process = self.popen(*arguments)
        out, err = process.communicate(timeout=200)
        assert process.returncode == expected, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out, err

    def load(self, rows: int) -> None:
        """The first rows of the demo's free-text set, mapped."""
        path = self.folder / "shapes.csv"
        with SHAPES.open(newline="") as source, path.open("w", newline="") as target:
            csv.writer(target).writerows(row for _, row in zip(range(rows + 1), csv.reader(source), strict=False))
        columns = ("--prompt-column", "prompt", "--response-column", "answer", "--image-column", "image")
        self.manage("import_dataset", str(path), *columns, "--mandatory-column", "image")

    def query(self, sql: str) -> list[Any]:
        database = sqlite3.connect(f"file:{self.folder}/data/database.sqlite3?mode=ro", uri=True, timeout=10)
        try:
            return database.execute(sql).fetchall()
        finally:
            database.close()


@pytest.mark.slow
def test_base_and_adapters_stand_side_by_side_in_one_table_and_one_file(tmp_path: Path) -> None:
    here = Installation(tmp_path, "fake")
    here.load(12)
    for seed in ("1", "2"):
        here.manage("train", "--max-steps", "1", "--holdout-fraction", "0.4", "--holdout-seed", seed)
    first, second = [name for (name,) in here.query("select name from training_app_adapter order by id")]
    output = tmp_path / "joined.csv"
    models = ("--base", "--adapter", first, "--adapter", second)
    scoring = ("--metric", "cer", "--metric", '{"name": "anls", "threshold": 0.4}', "--casefold")
    out, err = here.manage("evaluate", *models, "--rows", "heldout", "--output", str(output), *scoring)
    assert "cer" in out
    assert "anls" in out
    assert all(name in out for name in ("base", first, second))
    assert "100.0 %" in out
    assert str(output) in err
    lines = list(csv.DictReader(output.open(newline="")))
    indices = [int(line["index"]) for line in lines]
    assert indices == sorted(indices)
    ours = [line for line in lines if line[f"exact_match_{first}"]]
    assert ours
    assert [line[f"prediction_{first}"] for line in ours] == [line["answer"] for line in ours]
    assert [bool(line["prediction_base"]) for line in ours] == [True] * len(ours), "the base is judged on these rows"
    assert {line["exact_match_base"] for line in ours} == {"False"}

    assert "transition" not in lines[0]

    # The same again takes the finished runs as they are, and compares them.
    page, again = tmp_path / "page.html", ("--rows", "heldout", *scoring, "--resume", "--compare")
    out, err = here.manage("evaluate", *models, *again, "--output", str(page))
    assert here.query("select count(*) from evaluation_app_evaluationrun") == [(3,)]
    assert "Against base, by exact_match; p adjusted for all of them (Holm)" in out
    assert "luck alone" in out
    pages = [tmp_path / f"page_dataset1_{name}.html" for name in (first, second)]
    assert all(str(path) in err and "</html>" in path.read_text() for path in pages)

    table = tmp_path / "compared.json"
    out, _ = here.manage("evaluate", *models[:3], *again, "--json", "--output", str(table))
    (comparison,) = json.loads(out)["comparisons"]
    assert comparison["transitions"] == {"fixed": len(ours), "broken": 0, "both_right": 0, "both_wrong": 0}
    written = json.loads(table.read_text())
    assert [row["transition"] for row in written["rows"]] == ["fixed"] * len(ours)
    assert written["comparisons"] == [comparison]

    out, _ = here.manage("evaluate", "--adapter", first, "--classification", "--limit", "5", "--json")
    (run,) = json.loads(out)["runs"]
    assert (run["status"], run["adapter"], run["num_samples"], run["eval_mode"]) == (
        "completed",
        first,
        5,
        "classification",
    )


@pytest.mark.slow
def test_several_datasets_in_one_call_make_a_table_and_a_file_each(tmp_path: Path) -> None:
    here = Installation(tmp_path, "fake")
    here.load(5)
    here.load(4)
    output = tmp_path / "answers.csv"
    out, err = here.manage("evaluate", "--base", "--dataset", "1", "--dataset", "2", "--output", str(output))
    assert out.count("shapes.csv, rows: all") == 2
    files = [tmp_path / f"answers_dataset{number}.csv" for number in (1, 2)]
    assert [len(list(csv.DictReader(path.open(newline="")))) for path in files] == [5, 4]
    assert all(str(path) in err for path in files)
    assert not output.exists()


@pytest.mark.slow
def test_a_run_that_fails_ends_the_command_with_one_and_its_reason(tmp_path: Path) -> None:
    here = Installation(tmp_path, "fake")
    here.load(3)
    for table in (tmp_path / "data" / "datasets").glob("*.parquet"):
        table.unlink()
    output = tmp_path / "out.csv"
    _, err = here.manage("evaluate", "--base", "--output", str(output), expected=1)
    assert "gone from the data directory" in err
    assert not output.exists()


@pytest.mark.slow
def test_the_real_tiny_model_answers_the_rows_and_the_export_is_written(tmp_path: Path) -> None:
    here = Installation(tmp_path, "auto")
    here.load(4)
    output = tmp_path / "out.csv"
    out, _ = here.manage("evaluate", "--base", "--limit", "3", "--output", str(output))
    assert "F1" in out
    lines = list(csv.DictReader(output.open(newline="")))
    assert [line["index"] for line in lines] == ["0", "1", "2"]
    assert all(line["prediction"].startswith("a ") for line in lines), "the base describes, in words of its own"
    assert all(0 < float(line["token_f1"]) < 1 for line in lines)
    assert here.query("select status, num_samples from evaluation_app_evaluationrun") == [("completed", 3)]


@pytest.mark.slow
def test_ctrl_c_stops_the_run_keeps_its_samples_and_tells_the_truth(tmp_path: Path) -> None:
    here = Installation(tmp_path, "auto")
    here.environment["QWEN3VL_EVALUATION_BATCH_SIZE"] = "2"
    here.load(600)
    process = here.popen("evaluate", "--base")
    deadline = time.monotonic() + 120
    while not (stored := here.query("select count(*) from evaluation_app_sample")[0][0]):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Stopped after" in err
    ((status, error, kept),) = here.query(
        "select status, error, (select count(*) from evaluation_app_sample) from evaluation_app_evaluationrun"
    )
    assert status == "error"
    assert error == f"Stopped after {kept} of 600 rows."
    assert stored <= kept < 600
    assert "--resume" in err

    # The same command again goes on with what is missing.
    del here.environment["QWEN3VL_EVALUATION_BATCH_SIZE"]
    here.manage("evaluate", "--base", "--resume")
    assert here.query("select id, status, num_samples from evaluation_app_evaluationrun") == [(1, "completed", 600)]
    assert here.query('select count(*), count(distinct "index") from evaluation_app_sample') == [(600, 600)]
