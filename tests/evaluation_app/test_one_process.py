"""Evaluations in a row with real processes: one load, a log each, and a kill that ends the run in work alone."""

import contextlib
import csv
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.evaluation_app.test_evaluate_command import Installation

ROWS = {"first": 20, "second": 25, "third": 400}


def write_table(path: Path, name: str, count: int) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "answer"])
        writer.writerows([f"{name}: what comes after {number}?", str(number + 1)] for number in range(count))
    return path


def run_process(data_dir: str) -> psutil.Process:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "ftproject.worker" in process.cmdline() and process.environ().get("QWEN3VL_DATA_DIR") == data_dir:
                return process
    raise AssertionError("there is no run process")


@pytest.mark.slow
def test_one_process_does_all_three_and_its_kill_ends_the_third_alone(tmp_path: Path) -> None:
    here = Installation(tmp_path, "auto")
    here.environment["QWEN3VL_EVALUATION_BATCH_SIZE"] = "1"
    for name, count in ROWS.items():
        table = write_table(tmp_path / f"{name}.csv", name, count)
        here.manage("import_dataset", str(table), "--prompt-column", "prompt", "--response-column", "answer")
    command = ("evaluate", "--base", "--dataset", "1", "--dataset", "2", "--dataset", "3")
    process = here.popen(*command)
    third = "select count(*) from evaluation_app_sample where run_id = 3"
    deadline = time.monotonic() + 200
    while here.query(third)[0][0] < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    child = run_process(here.environment["QWEN3VL_DATA_DIR"])
    # One process, one claim and one lease from the first run to the third.
    assert child.cmdline()[3:5] == ["evaluation", "1"]
    assert len(here.query("select distinct claim from evaluation_app_evaluationrun")) == 1
    assert here.query("select holder from core_gpulease") == [("evaluation:3",)]
    os.kill(child.pid, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err

    states = here.query("select status, num_samples, error from evaluation_app_evaluationrun order by id")
    assert [state[:2] for state in states] == [("completed", 20), ("completed", 25), ("error", None)]
    assert states[0][2] is states[1][2] is None
    assert "SIGKILL" in states[2][2]
    assert here.query("select holder from core_gpulease") == [("",)]

    logs = [(tmp_path / "data" / "logs" / f"evaluation-{number}.log").read_text() for number in (1, 2, 3)]
    assert [len(re.findall(r"loading tiny-qwen3-vl", log)) for log in logs] == [1, 0, 0]
    assert [log.count("is loaded already") for log in logs] == [0, 1, 1]
    assert "this process goes on with evaluation:2" in logs[0]
    assert all("starts in the process of an earlier run" in log for log in logs[1:])

    kept = here.query('select id, "index", prediction from evaluation_app_sample where run_id = 3')
    here.environment["QWEN3VL_EVALUATION_BATCH_SIZE"] = "64"
    here.manage(*command, "--resume")
    assert here.query('select count(*), count(distinct "index") from evaluation_app_sample where run_id = 3') == [
        (400, 400)
    ]
    assert here.query("select status, num_samples from evaluation_app_evaluationrun where id = 3") == [
        ("completed", 400)
    ]
    now = set(here.query('select id, "index", prediction from evaluation_app_sample where run_id = 3'))
    assert set(kept) <= now, "what was there was computed again"
