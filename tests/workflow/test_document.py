"""The user's document, run: every curl line of docs/api.md in its order, and the closing script as it stands."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.document import Block, bash_blocks
from tests.workflow.served import ROOT, Served, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SEED = ROOT / "tests" / "assets" / "backend-api-skill.md"
API_PAGE = ROOT / "docs" / "api.md"
QUICK = {"sft_config": {"max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}}
LONG = {"sft_config": {"max_steps": 100_000, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}}


@pytest.fixture
def server(tmp_path: Path, photo_server: str) -> Iterator[Served]:
    with served(tmp_path / "data", QWEN3VL_IMAGE_ALLOWED_HOSTS=photo_server) as server:
        yield server


@dataclass
class Walk:
    """Runs the document's blocks with curl; only what no machine shares (port, paths, the photo's host) is replaced."""

    server: Served
    folder: Path
    dataset_csv: Path
    photo_server: str
    adapter: str = "/path/to/adapter_20260215_143022"
    answers: dict[str, list[Any]] = field(default_factory=dict)

    def bash(self, text: str) -> subprocess.CompletedProcess[str]:
        # An HTTP error becomes exit code 22 with the problem on stdout.
        (self.folder / ".curlrc").write_text("silent\nshow-error\nfail-with-body\nmax-time = 120\n")
        environment = {**os.environ, "CURL_HOME": str(self.folder), "HOME": str(self.folder)}
        return subprocess.run(
            ["bash", "-c", text], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600
        )

    def localise(self, text: str) -> str:
        replacements = {
            "http://localhost:8000": self.server.url,
            "/path/to/dataset.csv": str(self.dataset_csv),
            "https://example.com/photo.jpg": f"http://{self.photo_server}/photo.jpg",
            "/path/to/adapter_20260215_143022": self.adapter,
            "adapter_20260215_143022": Path(self.adapter).name,
        }
        for literal, here in replacements.items():
            text = text.replace(literal, here)
        return text

    def run(self, block: Block) -> None:
        result = self.bash(self.localise(block.text))
        refused = result.returncode == 22 and block.heading == "Start Training"
        assert result.returncode == 0 or refused, f"{block.heading}:\n{block.text}\n{result.stdout}\n{result.stderr}"
        self.answers.setdefault(block.heading, []).append(parsed(result.stdout))

    def train(self, body: dict[str, Any]) -> int:
        response = self.server.post("/api/training/start", body)
        assert response.status_code == 200, response.text
        return int(response.json()["run_id"])

    def finish_training(self, run_id: int) -> None:
        ended = self.server.wait_for(f"/api/training/runs/{run_id}", "status", {"completed", "error"})
        assert ended["status"] == "completed", ended["error"]
        self.adapter = ended["adapter_path"]

    def evaluate_until(self, run_id: int) -> None:
        while len(self.server.get("/api/evaluation/runs", status="all")["runs"]) < run_id:
            assert self.server.post("/api/evaluation/run", {"sample_limit": 5}).status_code == 200
        self.server.wait_for(f"/api/evaluation/runs/{run_id}", "status", {"completed", "error"})
        assert self.server.get("/api/evaluation/status")["running"] is False

    def before(self, block: Block) -> None:
        """Brings about the situation that the document takes for granted at this point."""
        if block.heading == "Stop Training (graceful)":
            run_id = self.train(LONG)
            # After the warm-up: an adapter of one step at learning rate 0 would rightly be refused as fine-tuned.
            self.server.wait_for_step(run_id, 10)
        elif block.heading == "Run Evaluation":
            self.settle_training()
        elif block.heading == "List Evaluation Runs":
            self.evaluate_until(1)
        elif block.heading == "Get Run Details":
            self.evaluate_until(3)

    def after(self, block: Block) -> None:
        if block.heading == "Start Training" and "model_name" in block.text:
            self.finish_training(self.train(QUICK))
        elif block.heading == "Stop Training (graceful)":
            self.settle_training()

    def settle_training(self) -> None:
        status = self.server.wait_for("/api/training/status", "status", {"completed", "error", "idle"})
        if status["status"] == "completed":
            self.adapter = status["adapter_path"]


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def curl_blocks(page: Path) -> list[Block]:
    return [block for block in bash_blocks(page) if block.is_curl]


def test_every_curl_line_works_as_written(server: Served, tmp_path: Path, dataset_csv: Path, photo_server: str) -> None:
    walk = Walk(server, tmp_path, dataset_csv, photo_server)
    blocks = curl_blocks(API_PAGE)
    assert {block.text for block in curl_blocks(SEED)} <= {block.text for block in blocks}
    for block in blocks:
        walk.before(block)
        walk.run(block)
        walk.after(block)
    check_answers(walk)


def check_answers(walk: Walk) -> None:
    """What the document shows under its lines."""
    answers = {heading: found[0] for heading, found in walk.answers.items()}
    assert answers["Health Check"]["status"] == "ok"
    assert {"available", "device_name", "memory_total_mb"} <= set(answers["GPU Stats"])
    assert answers["Model Status"] | {"loaded": False, "mode": None, "adapter": None} == answers["Model Status"]
    assert answers["Upload CSV"]["num_rows"] == 60
    assert answers["List Columns"]["columns"] == ["prompt", "response", "input_image_url", "swapped_image"]
    assert answers["Dataset Info"]["loaded"] is True
    assert len(answers["Preview Rows"]["rows"]) == 5
    assert len(answers["Preview Conversations (as model will see them)"]["conversations"]) == 3
    if not answers["GPU Stats"]["available"]:
        assert answers["Start Training"]["code"] == "model_needs_gpu"
        assert "model_name" in answers["Start Training"]["hint"]
    assert answers["Stop Training (graceful)"]["status"] == "stopping"
    assert set(answers["List Saved Adapters"]["adapters"][0]) >= {"name", "path", "created_at"}
    assert answers["Run Evaluation"]["model_type"] == "base"
    assert set(answers["Poll Evaluation Status"]) >= {"running", "model_type"}
    run = answers["List Evaluation Runs"]["runs"][0]
    assert set(run) >= {
        "id", "model_type", "eval_mode", "num_samples", "num_skipped", "exact_match_accuracy", "token_precision",
        "token_recall", "token_f1", "created_at",
    }  # fmt: skip
    assert answers["Get Run Details"]["id"] == 3
    sample = answers["Get Samples (paginated)"]["samples"][0]
    assert set(sample) >= {
        "index", "prompt", "ground_truth", "prediction", "exact_match", "token_f1", "token_precision", "token_recall",
        "skipped", "skipped_reason",
    }  # fmt: skip
    assert answers["Delete a Run"] == {"status": "deleted", "id": 3}
    assert set(answers["Generate (single model)"]) >= {"output", "model_type", "generation_time_ms"}
    assert set(answers["Compare (base vs. fine-tuned)"]) >= {
        "base_output", "finetuned_output", "base_time_ms", "finetuned_time_ms",
    }  # fmt: skip
    assert answers["Create Session"]["id"] == 1


# The script waits a minute blindly. Its first `sleep 30` is cut to a second, so that the next evaluation always meets
# one that is not done; the last one ends with the evaluations.
SHORTER_SLEEP = """#!/bin/bash
if [ "$1" -lt 30 ] || [ ! -e slept ]; then [ "$1" -lt 30 ] || touch slept; exec /bin/sleep 1; fi
for _ in $(seq "$1"); do
  curl -s {url}/api/evaluation/status | grep -q '"running":false' && exit
  /bin/sleep 1
done
"""


def test_the_closing_script_runs_to_its_results(server: Served, data_csv: Path, photo_server: str) -> None:
    script = bash_blocks(SEED)[-1].text
    assert script.startswith("BASE=http://localhost:8000")
    assert re.findall("sleep .*?(?= |$)", script, re.MULTILINE) == ["sleep 5", "sleep 30", "sleep 30"]
    walk = Walk(server, data_csv.parent, data_csv, photo_server)
    shim = data_csv.parent / "bin" / "sleep"
    shim.parent.mkdir()
    shim.write_text(SHORTER_SLEEP.format(url=server.url))
    shim.chmod(0o755)
    result = walk.bash(f"PATH={shim.parent}:$PATH\n{walk.localise(script)}")
    assert result.returncode == 0, result.stderr
    assert "Training: completed" in result.stdout
    assert '"status":"queued","model_type":"finetuned"' in result.stdout.replace(" ", "")
    runs = server.get("/api/evaluation/runs")["runs"]
    assert [run["model_type"] for run in runs] == ["finetuned", "base"]
    assert [run["num_samples"] for run in runs] == [50, 50]
    lines = (data_csv.parent / "results.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 51
    assert "prediction" in lines[0]
