"""`manage.py preflight`: its report, its exit code, and one real run process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from datasets_app.models import PreflightRun
from datasets_app.preflight import wait
from datasets_app.preflight_runner import execute_preflight
from ftproject.core.jobs import Job
from tests.datasets_app.test_preflight_rows import data_uri, load, mixed_rows, picture, row
from tests.postgres.databases import own_database
from tests.training_app.world import SameProcessExecutor

ROOT = Path(__file__).resolve().parents[2]
PREPARE = """
import django
django.setup()
from pathlib import Path
from django.core.management import call_command
call_command("migrate", verbosity=0)
from tests.training_app.world import load_dataset, numbered_rows
load_dataset(Path({folder!r}), numbered_rows(6))
"""


class Here:
    """Stands for a thread: the run process's work is done where it would be started."""

    def __init__(self, target: Any, args: tuple[int], **_: Any) -> None:
        self.target, self.args = target, args

    def start(self) -> None:
        self.target(*self.args)

    def join(self, timeout: float) -> None: ...


class Threads:
    Thread = Here


@pytest.fixture
def without_a_server(own_data_dir: Path, db: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wait, "get_executor", lambda: SameProcessExecutor(execute_preflight))
    monkeypatch.setattr(wait, "PATIENCE_SECONDS", 0)
    monkeypatch.setattr(wait, "threading", Threads)
    monkeypatch.setattr(wait, "connection", type("Connection", (), {"close": staticmethod(lambda: None)}))
    return own_data_dir


def test_it_prints_what_was_found(without_a_server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*mixed_rows(), row(image=data_uri(picture(64, 64)), answer="8")]
    load(without_a_server, rows)
    config = without_a_server / "start.json"
    config.write_text('{"model_config_data": {"max_seq_length": 60}, "holdout_fraction": 0.2, "dry_run": true}')
    call_command("preflight", config=config)
    text = " ".join(capsys.readouterr().out.split())
    for words in ("usable", "skipped", "too long", "remedy", "conflicts", "held out", "It can be trained."):
        assert words in text


def test_the_json_is_the_report(without_a_server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset, _ = load(without_a_server, [row(image=data_uri(picture(64, 64)))] * 2)
    call_command("preflight", dataset=dataset.pk, json=True)
    report = json.loads(capsys.readouterr().out)
    assert report == PreflightRun.objects.get().report
    assert report["duplicates"]["extra_rows"] == 1


def test_nothing_to_train_on_is_a_failure(without_a_server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(without_a_server, [row(image="")])
    with pytest.raises(SystemExit) as caught:
        call_command("preflight")
    assert caught.value.code == 1
    assert "Cannot train: No row can be trained on" in " ".join(capsys.readouterr().out.split())


def test_a_preflight_that_fails_is_a_failure_with_its_reason(
    without_a_server: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, _ = load(without_a_server, [row(image=data_uri(picture(64, 64)))])
    dataset.table_path.unlink()
    with pytest.raises(SystemExit) as caught:
        call_command("preflight")
    assert caught.value.code == 1
    assert "gone from the data directory" in capsys.readouterr().err


def test_ctrl_c_stops_it_and_leaves_no_report(
    without_a_server: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(without_a_server, [row(image=data_uri(picture(64, 64)))])
    monkeypatch.setattr(wait, "PATIENCE_SECONDS", 1000)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("datasets_app.preflight.wait.time.sleep", interrupted)
    with pytest.raises(SystemExit):
        call_command("preflight")
    run = PreflightRun.objects.get()
    assert (run.status, run.report) == (Job.Status.ERROR, None)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "cannot be read"),
        ("[]", "must hold an object"),
        ('{"sft_config": {"max_step": 3}}', "max_steps"),
        ("{}", "No dataset is loaded"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(own_data_dir: Path, content: str, words: str) -> None:
    config = own_data_dir / "start.json"
    config.write_text(content)
    with pytest.raises(CommandError, match=words):
        call_command("preflight", config=config)


@pytest.mark.slow
def test_without_a_server_it_does_the_work_in_a_run_process_of_its_own(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    ours = {**own_database(data_dir), "QWEN3VL_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **ours}
    prepare = [sys.executable, "-c", PREPARE.format(folder=str(tmp_path))]
    subprocess.run(prepare, env=environment, check=True, timeout=120)
    command = [sys.executable, str(ROOT / "manage.py"), "preflight", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rows"]["usable"] == 6
    assert report["tokens"]["vision"] == 24
