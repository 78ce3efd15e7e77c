"""One real adapter leaves and comes back: stock PEFT, download and import, and a merge all answer as ours does."""

import base64
import csv
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.configs import TINY_MODEL_PATH
from tests.training_app.test_train_command import ROOT, Workplace
from tests.training_app.world import numbered_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROWS = 12


@dataclass(frozen=True)
class Trained:
    """A workplace with one adapter, and what it answered to every row."""

    workplace: Workplace
    run: dict[str, Any]
    answers: list[str]
    answers_of_import: list[str]

    @property
    def folder(self) -> Path:
        return Path(self.run["adapter_path"])


def manage(workplace: Workplace, *words: str) -> str:
    result = subprocess.run(
        [sys.executable, "manage.py", *words],
        cwd=ROOT,
        env=workplace.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def evaluated(workplace: Workplace, *words: str) -> list[list[str]]:
    """The answers of each model that a call of `evaluate` asked, one list a model."""
    output = workplace.folder / "answers.csv"
    manage(workplace, "evaluate", *words, "--output", str(output), "--raw")
    with output.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [[row[name] for row in rows] for name in rows[0] if name.startswith("prediction")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained, downloaded, imported under another name; both asked in one call."""
    workplace = Workplace(tmp_path_factory.mktemp("travels"), "auto", rows=ROWS)
    settings = ("--max-steps", "16", "--learning-rate", "4e-3", "--per-device-train-batch-size", "4", "--r", "8")
    code, out, err = workplace.train(*settings, "--holdout-fraction", "0.2", "--output", "json")
    assert code == 0, err
    run = json.loads(out)
    archive = str(workplace.folder / "adapter.zip")
    manage(workplace, "adapters", "download", run["adapter"], archive)
    manage(workplace, "adapters", "import", archive, "--name", "again")
    return Trained(workplace, run, *evaluated(workplace, "--adapter", run["adapter"], "--adapter", "again"))


def test_stock_peft_gives_our_answers_without_our_code(trained: Trained, tmp_path: Path) -> None:
    rows = []
    for index, (prompt, image, _) in enumerate(numbered_rows(ROWS)):
        file = tmp_path / f"{index}.png"
        file.write_bytes(base64.b64decode(image.partition(",")[2]))
        rows.append({"prompt": prompt, "image": str(file)})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    script = tmp_path / "stock_answers.py"  # away from the project, so that nothing of it can be imported
    script.write_text((Path(__file__).parent / "stock_answers.py").read_text())
    result = subprocess.run(
        [sys.executable, str(script), str(TINY_MODEL_PATH), str(trained.folder), str(tmp_path / "rows.json")],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["ours"] == []
    assert found["answers"] == trained.answers
    assert len(set(trained.answers)) > 1 or trained.answers[0], "an adapter that says nothing would prove nothing"


def test_a_download_that_is_imported_answers_the_same(trained: Trained) -> None:
    weights = "adapter_model.safetensors"
    assert (trained.folder.parent / "again" / weights).read_bytes() == (trained.folder / weights).read_bytes()
    assert trained.answers_of_import == trained.answers


def test_a_merged_model_answers_as_base_and_adapter_do(trained: Trained) -> None:
    printed = manage(trained.workplace, "merge_adapter", trained.run["adapter"], "--name", "merged")
    assert Path(printed.splitlines()[-1]).name == "merged"
    [answers] = evaluated(trained.workplace, "--base", "--model", "merged")
    same = sum(a == b for a, b in zip(answers, trained.answers, strict=True))
    assert same >= ROWS - 1, (answers, trained.answers)  # weights rounded to 16 bit may tip one answer over


# What the adapter says of itself


def test_the_provenance_tells_everything_that_the_adapter_was_made_from(trained: Trained) -> None:
    found = json.loads((trained.folder / "provenance.json").read_text())
    reproduced = trained.run
    assert len(found["dataset"]["sha256"]) == 64
    assert (found["dataset"]["filename"], found["dataset"]["num_rows"]) == ("rows.csv", ROWS)
    assert found["mapping"]["image_url_columns"] == ["image"]
    assert found["split"]["trained_rows"]
    assert found["split"]["heldout_rows"]
    assert found["config"]["sft_config"]["max_steps"] == 16
    assert found["config"]["holdout_fraction"] == 0.2
    assert found["requested_config"]["lora_config"] == {"r": 8}
    assert (found["seed"], found["base_model_name"], found["backend"]) == (3407, "tiny-qwen3-vl", "transformers")
    assert set(found["versions"]) >= {"torch", "transformers", "peft"}
    assert found["metrics"]["loss"] == reproduced["metrics"]["loss"]
    assert found["metrics"]["eval_loss"] is not None
    assert found["duration_seconds"] > 0
    assert found["peak_memory_mb"] > 100
    assert found["pixel_rule"]["max_pixels"] >= found["pixel_rule"]["min_pixels"]
    assert found["adapter_effective"] is True
    assert (found["steps"], found["stopped_early"], found["run_id"]) == (16, False, reproduced["run_id"])


def test_no_file_of_the_adapter_names_this_machine(trained: Trained) -> None:
    here = [str(trained.workplace.folder), str(ROOT), str(Path.home()), sys.prefix, platform.node()]
    for file in trained.folder.rglob("*"):
        content = file.read_bytes()
        assert [name for name in here if len(name) > 3 and name.encode() in content] == [], file.name
