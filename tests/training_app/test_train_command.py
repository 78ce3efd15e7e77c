"""`manage.py train`: its flags, its exit code, its waiting, and one real training on the tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command

from datasets_app.models import Dataset
from ftproject.core import waiting
from tests.postgres.databases import own_database
from tests.training_app.world import Api, work_queue
from training_app.models import TrainingRun

ROOT = Path(__file__).resolve().parents[2]
PREPARE = """
import django
django.setup()
from pathlib import Path
from django.core.management import call_command
call_command("migrate", verbosity=0)
from tests.training_app.world import load_dataset, numbered_rows
load_dataset(Path({folder!r}), numbered_rows({rows}))
"""


# In this process, beside a queue worker


class OtherProcess:
    """Stands for the clock: while the command sleeps, the queue's worker works."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile

    def sleep(self, seconds: float) -> None:
        self.meanwhile()

    def monotonic(self) -> float:
        return time.monotonic()


@pytest.fixture
def beside_a_worker(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> Any:
    def work(meanwhile: Callable[[], object] = work_queue) -> None:
        monkeypatch.setattr(waiting, "time", OtherProcess(meanwhile))

    monkeypatch.setattr(waiting, "queue_worker_seen", lambda: True)
    work()
    return work


def test_it_waits_for_the_worker_and_prints_the_adapter(
    beside_a_worker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("train", "--max-steps", "3", "--no-bf16", "--holdout-fraction", "0.5")
    run = TrainingRun.objects.get()
    assert (run.status, run.current_step) == ("completed", 3)
    assert run.config["holdout_fraction"] == 0.5
    assert capsys.readouterr().out.splitlines()[-1] == str(run.adapter.path)


def test_flags_win_over_the_file(beside_a_worker: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"sft_config": {"max_steps": 9, "learning_rate": 0.01}, "holdout_seed": 5}))
    call_command("train", "--config", str(config), "--max-steps", "2")
    run = TrainingRun.objects.get()
    assert run.requested_config == {"sft_config": {"max_steps": 2, "learning_rate": 0.01}, "holdout_seed": 5}


def test_a_failed_run_is_exit_code_1_with_the_reason(beside_a_worker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    beside_a_worker(lambda: TrainingRun.objects.update(status="error", error="Out of memory."))
    with pytest.raises(SystemExit) as leave:
        call_command("train")
    assert leave.value.code == 1
    assert "Out of memory." in capsys.readouterr().err


def test_a_completed_run_without_an_adapter_is_exit_code_1(beside_a_worker: Any) -> None:
    beside_a_worker(lambda: TrainingRun.objects.update(status="completed"))
    with pytest.raises(SystemExit) as leave:
        call_command("train")
    assert leave.value.code == 1


def test_ctrl_c_asks_for_a_graceful_stop_and_a_second_leaves(beside_a_worker: Any) -> None:
    def press() -> None:
        TrainingRun.objects.filter(status="queued").update(status="training")
        signal.raise_signal(signal.SIGINT)

    beside_a_worker(press)
    with pytest.raises(SystemExit) as leave:
        call_command("train")
    assert leave.value.code == 130
    assert TrainingRun.objects.get().status == "stopping"


def test_ctrl_c_in_the_queue_cancels(beside_a_worker: Any) -> None:
    def press() -> None:
        signal.raise_signal(signal.SIGINT)

    beside_a_worker(press)
    with pytest.raises(SystemExit) as leave:
        call_command("train")
    assert leave.value.code == 1
    assert TrainingRun.objects.get().error == "Cancelled before it started."


# Refusals


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-steps", "0"], "sft_config.max_steps: must be at least 1"),
        (["--model-name", "unsloth/Qwen3-VL-8B-Instruct"], "tiny-qwen3-vl"),
        (["--dataset", "99"], "There is no dataset 99."),
        (["--config", "/no/such/file.json"], "cannot be read"),
        (["--lr-scheduler-type", "wavy"], "invalid choice"),
        (["--max-steps", "many"], "invalid int value"),
    ],
)
def test_a_start_that_is_refused_says_why(api: Api, dataset: Dataset, flags: list[str], words: str) -> None:
    with pytest.raises(CommandError, match=words):
        call_command("train", *flags)
    assert not TrainingRun.objects.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "must hold an object"),
        ('{"sft_config": 5}', "must be an object"),
        ('{"colour": 5}', "colour"),
    ],
)
def test_a_config_file_is_checked_like_a_request(
    api: Api, dataset: Dataset, tmp_path: Path, text: str, words: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(text)
    with pytest.raises(CommandError, match=words):
        call_command("train", "--config", str(config), "--max-steps", "2")
    assert not TrainingRun.objects.exists()


# As a process of its own, without a queue worker: it does the work itself


class Workplace:
    """A data directory of its own, served by nothing but the command."""

    def __init__(self, folder: Path, backend: str, rows: int = 12) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("QWEN3VL_")},
            "DJANGO_SETTINGS_MODULE": "ftproject.settings",
            "PYTHONPATH": str(ROOT),
            "QWEN3VL_DATA_DIR": str(folder / "data"),
            "QWEN3VL_BACKEND": backend,
            "OMP_NUM_THREADS": "1",
        }
        self.environment.update(own_database(folder / "data"))
        program = PREPARE.format(folder=str(folder), rows=rows)
        subprocess.run([sys.executable, "-c", program], env=self.environment, cwd=ROOT, check=True, timeout=120)

    def start(self, *flags: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "manage.py", "train", *flags],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def train(self, *flags: str) -> tuple[int, str, str]:
        process = self.start(*flags)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err


def test_without_a_worker_it_does_the_work_itself(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path, "fake")
    drained = tmp_path / "data" / "run" / "draining"
    drained.parent.mkdir(exist_ok=True)
    drained.touch()  # a server was stopped here before
    code, out, err = workplace.train("--max-steps", "3")
    assert code == 0, err
    assert (Path(out.splitlines()[-1]) / "adapter_model.safetensors").is_file()
    code, _, err = workplace.train("--max-steps", "3", "--dataset", "7")
    assert code == 1
    assert "There is no dataset 7." in err


@pytest.mark.slow
def test_the_tiny_model_really_learns_through_the_run_process(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path, "auto")
    code, out, err = workplace.train(
        "--max-steps", "4", "--per-device-train-batch-size", "4", "--learning-rate", "4e-3"
    )
    assert code == 0, err
    folder = Path(out.splitlines()[-1])
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["split"]["trained_rows"] == "0-11"
    assert provenance["config"]["sft_config"]["max_steps"] == 4
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-qwen3-vl"
    assert (folder / "adapter_model.safetensors").stat().st_size > 100_000


@pytest.mark.slow
def test_ctrl_c_saves_what_was_trained_so_far(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path, "auto")
    process = workplace.start("--max-steps", "100000")
    log = tmp_path / "data" / "logs" / "training-1.log"
    wait_until(lambda: steps_logged(workplace) >= 2, process, 120, log)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "(stopped early)" in out
    assert (Path(out.splitlines()[-1]) / "adapter_model.safetensors").is_file()


def steps_logged(workplace: Workplace) -> int:
    import sqlite3

    url = workplace.environment.get("QWEN3VL_DATABASE_URL")
    file = f"file:{workplace.environment['QWEN3VL_DATA_DIR']}/database.sqlite3?mode=ro"
    connection: Any = psycopg.connect(url) if url else sqlite3.connect(file, uri=True, timeout=20)
    try:
        return int(connection.execute("select count(*) from training_app_trainingmetric").fetchone()[0])
    finally:
        connection.close()


def wait_until(done: Callable[[], bool], process: "subprocess.Popen[str]", seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        words = log.read_text()[-2000:] if log.exists() else "no log"
        assert process.poll() is None, words
        assert time.monotonic() < deadline, words
        time.sleep(0.2)
