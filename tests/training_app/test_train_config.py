"""`manage.py train` with configuration files, a dry run, and answers for programs."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from datasets_app.models import Dataset
from datasets_app.preflight import wait
from datasets_app.preflight_runner import execute_preflight
from ftproject.core import waiting
from ftproject.core.config_files import read_config_file
from ftproject.core.errors import InvalidInputError
from tests.datasets_app.test_preflight_command import Threads
from tests.training_app.test_train_command import OtherProcess
from tests.training_app.world import Api, SameProcessExecutor, load_dataset, trained_run, work_queue
from training_app.models import TrainingRun

CONFIG = """
# A comment, as JSON has none.
sft_config:
  max_steps: 3
  learning_rate: 2e-4
  report_to: none
  bf16: false
lora_config: {r: 8, finetune_vision_layers: no}
holdout_fraction: 0.25
"""


@pytest.fixture
def beside_a_worker(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "queue_worker_seen", lambda: True)
    monkeypatch.setattr(waiting, "time", OtherProcess(work_queue))


@pytest.fixture
def with_preflight(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "get_executor", lambda: SameProcessExecutor(execute_preflight))
    monkeypatch.setattr(wait, "PATIENCE_SECONDS", 0)
    monkeypatch.setattr(wait, "threading", Threads)
    monkeypatch.setattr(wait, "connection", type("Connection", (), {"close": staticmethod(lambda: None)}))


def written(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# The file


@pytest.mark.parametrize("name", ["config.yaml", "config.yml", "config.txt"])
def test_a_yaml_file_trains_as_its_json_would(beside_a_worker: None, tmp_path: Path, name: str) -> None:
    call_command("train", "--config", str(written(tmp_path, CONFIG, name)))
    assert TrainingRun.objects.get().requested_config == {
        "sft_config": {"max_steps": 3, "learning_rate": 0.0002, "report_to": "none", "bf16": False},
        "lora_config": {"r": 8, "finetune_vision_layers": False},
        "holdout_fraction": 0.25,
    }


@pytest.mark.parametrize(
    "text", ["sft_config:\n  # max_steps: 9\nholdout_seed: 5", '{"sft_config": null, "holdout_seed": 5}']
)
def test_flags_fill_a_section_that_the_file_leaves_empty(beside_a_worker: None, tmp_path: Path, text: str) -> None:
    call_command("train", "--config", str(written(tmp_path, text)), "--max-steps", "2")
    run = TrainingRun.objects.get()
    assert run.requested_config == {"sft_config": {"max_steps": 2}, "holdout_seed": 5}
    assert run.current_step == 2


@pytest.mark.parametrize("text", [CONFIG, '{"sft_config": {"max_steps": 3}}'])
def test_standard_input_takes_either_form(beside_a_worker: None, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    call_command("train", "--config", "-")
    assert TrainingRun.objects.get().config["sft_config"]["max_steps"] == 3


@pytest.mark.parametrize("text", ["2e-4", "1E5", "-1.5e+3", "2.e2", "7", "0.1", "-3"])
def test_numbers_are_read_as_json_reads_them(tmp_path: Path, text: str) -> None:
    assert read_config_file(written(tmp_path, f"value: {text}")) == {"value": float(text)}


def test_an_api_answer_comes_back_as_a_file(api: Api, beside_a_worker: None, tmp_path: Path) -> None:
    run = trained_run(api, sft_config={"max_steps": 2})
    body = api.get(f"/api/training/runs/{run.pk}").json()["reproduce"]["body"]
    call_command("train", "--config", str(written(tmp_path, json.dumps(body), "again.json")))
    assert TrainingRun.objects.order_by("-id")[0].config == run.config


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "sft_config: [", "cannot be read"),
        ("a.yaml", "- a\n- b", "must hold an object"),
        ("a.yaml", "5", "must hold an object"),
        ("a.yaml", "", "must hold an object"),
        ("a.yaml", "5: x", "must hold an object"),
        ("a.yaml", "sft_config: {max_steps: 1}\nsft_config: {max_steps: 2}", "'sft_config' is given twice"),
        ("a.json", '{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ("a.json", "sft_config: {}", "cannot be read"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.yaml", "a: !!python/object/apply:os.system ['touch canary']", "cannot be read"),
        ("a.yaml", "a: 2026-01-01", "not JSON serializable"),
        ("a.yaml", "a: !!set {x}", "not JSON serializable"),
        ("a.yaml", "a: &a [*a]", "cannot be read"),
        ("a.yaml", "a: !!python/name:os.system", "cannot be read"),
        ("a.yaml", "a: " + "x" * 1_000_001, "more than 1,000,000 characters"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as refusal:
        read_config_file(written(tmp_path, text, name))
    assert refusal.value.code == "config_file_invalid"
    assert not Path("canary").exists()


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("binary.yaml", "absent.yaml", "."):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            read_config_file(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sft_confg: {}", "did you mean 'sft_config'"),
        ("sft_config: {max_step: 3}", "did you mean 'max_steps'"),
        ("sft_config: {max_steps: three}", "must be integer"),
        ("sft_config: {learning_rate: .nan}", "must be a finite number"),
        ("holdout_fraction: 2", "must be at most 0.9"),
        ("dataset_id: 99", "There is no dataset 99"),
    ],
)
def test_a_setting_that_is_wrong_is_named_as_the_api_names_it(
    api: Api, dataset: Dataset, tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(CommandError, match=words):
        call_command("train", "--config", str(written(tmp_path, text)))
    assert not TrainingRun.objects.exists()


def test_the_same_key_is_the_same_run(beside_a_worker: None) -> None:
    for _ in range(2):
        call_command("train", "--max-steps", "2", "--idempotency-key", "night")
    assert TrainingRun.objects.count() == 1
    with pytest.raises(CommandError, match="another request body"):
        call_command("train", "--max-steps", "3", "--idempotency-key", "night")


# Answers for programs


def output(capsys: pytest.CaptureFixture[str]) -> Any:
    """What stood on stdout: one JSON object and nothing else."""
    return json.loads(capsys.readouterr().out)


def test_json_is_the_run_and_nothing_else(beside_a_worker: None, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("train", "--max-steps", "3", "--output", "json")
    run = TrainingRun.objects.get()
    body = output(capsys)
    assert (body["status"], body["run_id"], body["adapter"]) == ("completed", run.pk, run.adapter.name)
    assert body["adapter_path"] == str(run.adapter.path)
    assert body["current_step"] == 3


def test_a_failed_run_is_json_too_and_exit_code_1(
    beside_a_worker: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        TrainingRun.objects.update(status="error", error="Out of memory.")

    monkeypatch.setattr(waiting, "time", OtherProcess(fail))
    with pytest.raises(SystemExit) as leave:
        call_command("train", "--output", "json")
    assert leave.value.code == 1
    body = output(capsys)
    assert (body["status"], body["error"], body["adapter"]) == ("error", "Out of memory.", None)


def test_a_refusal_is_json_with_its_code_and_exit_code_1(
    api: Api, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leave:
        call_command("train", "--max-steps", "0", "--output", "json")
    assert leave.value.code == 1
    body = output(capsys)
    assert (body["status"], body["code"]) == ("refused", "out_of_range")
    assert body["errors"][0]["field"] == "sft_config.max_steps"


# The dry run


@pytest.mark.parametrize("in_file", [True, False])
def test_a_dry_run_says_what_would_be_trained_and_starts_nothing(
    with_preflight: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_file: bool
) -> None:
    config = written(tmp_path, "dry_run: true\nsft_config: {max_steps: 7}" if in_file else "sft_config: {max_steps: 7}")
    call_command("train", "--config", str(config), "--output", "json", *([] if in_file else ["--dry-run"]))
    body = output(capsys)
    assert (body["status"], body["config"]["sft_config"]["max_steps"]) == ("dry_run", 7)
    assert (body["preflight"]["complete"], body["preflight"]["rows"]["usable"]) == (True, 12)
    assert not TrainingRun.objects.exists()


def test_a_dry_run_in_words(with_preflight: None, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("train", "--dry-run")
    assert "Would train tiny-qwen3-vl on cpu; nothing was started." in capsys.readouterr().out


def test_a_dry_run_of_what_cannot_be_trained_is_exit_code_1(
    with_preflight: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_dataset(tmp_path, [("Which?", "", " ")] * 2, name="empty.csv")
    with pytest.raises(CommandError, match="No row"):
        call_command("train", "--dry-run")


def test_a_dry_run_of_a_continuation_is_refused(api: Api, dataset: Dataset) -> None:
    with pytest.raises(CommandError, match="nothing to try out"):
        call_command("train", "--resume", "1", "--dry-run")
