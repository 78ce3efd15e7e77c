"""A server that trains is backed up; what is restored elsewhere is sound, its adapter answers, its run can go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.postgres.databases import own_database
from tests.workflow.served import ROOT, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
MAPPING = {"prompt_column": "prompt", "response_column": "answer", "image_url_columns": ["image"]}
STEPS = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "save_steps": 5}


def manage(data_dir: Path, *words: str, code: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), *words],
        env={**os.environ, "QWEN3VL_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout


def test_a_back_up_of_a_training_server_is_restored_sound_and_goes_on(tmp_path: Path, data_csv: Path) -> None:
    if own_database(tmp_path):
        pytest.skip("backup copies SQLite; PostgreSQL has pg_dump")
    origin, backup, fresh = tmp_path / "origin", tmp_path / "backup", tmp_path / "fresh"
    with served(origin) as server:
        with data_csv.open("rb") as stream:
            httpx.post(f"{server.url}/api/datasets/upload", files={"file": ("rows.csv", stream)}, trust_env=False)
        server.post("/api/datasets/mapping", MAPPING).raise_for_status()
        done = server.post("/api/training/start", {"sft_config": {**STEPS, "max_steps": 2}}).json()["run_id"]
        adapter = server.wait_for(f"/api/training/runs/{done}", "status", {"completed"})["adapter"]
        running = server.post("/api/training/start", {"sft_config": {**STEPS, "max_steps": 100_000}}).json()["run_id"]
        server.wait_for_step(running, 12)
        manage(origin, "backup", str(backup))
        assert server.get(f"/api/training/runs/{running}")["status"] == "training"
    said = manage(fresh, "restore", str(backup))
    assert f"training:{running} was running then" in said
    found = json.loads(manage(fresh, "doctor", "--json"))
    assert [finding for finding in found["findings"] if finding["level"] == "error"] == []
    answer = json.loads(manage(fresh, "generate", "--prompt", "Which?", "--adapter", adapter, "--output", "json"))
    assert answer["model_type"] == "finetuned"
    with served(fresh) as server:
        run = server.get(f"/api/training/runs/{running}")
        assert (run["status"], run["can_resume"]) == ("error", True)
        assert "when the backup was made" in run["error"]
        again = server.post(f"/api/training/runs/{running}/resume").json()["run_id"]
        server.wait_for_step(again, run["current_step"] + 1)
