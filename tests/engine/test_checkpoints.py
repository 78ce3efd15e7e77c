"""Checkpoints on disk, without training: whole or not there, whoever dies when."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.backends.base import TrainingError
from ftproject.engine.checkpoints import (
    REQUIRED_FILES,
    Checkpoint,
    JobFacts,
    adopt_checkpoint,
    changed_versions,
    continuation_problem,
    drop_old_checkpoints,
    latest_checkpoint,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)

ROWS = {"trained_count": 3, "trained_sha256": "a", "heldout_count": 1, "heldout_sha256": "b"}
CONFIG: dict[str, Any] = {"sft_config": {"learning_rate": 0.1, "save_steps": 5}, "holdout_fraction": 0.2}
JOB = JobFacts(config=CONFIG, backend="transformers", device="cpu", rows=ROWS, versions={"torch": "2.13.0"})


def fill(folder: Path) -> None:
    for name in REQUIRED_FILES:
        (folder / name).write_text(name)


def save(work_dir: Path, step: int, job: JobFacts = JOB) -> Path:
    return write_checkpoint(work_dir, fill, step=step, total_steps=100, job=job, loop={"best_step": None})


def read(folder: Path) -> Checkpoint:
    found = read_checkpoint(folder)
    assert found is not None
    return found


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    found = read(save(tmp_path, 20))
    assert (found.step, found.total_steps, found.job, found.loop) == (20, 100, JOB, {"best_step": None})
    assert [item.name for item in tmp_path.iterdir()] == ["checkpoint-20"]


def test_the_newest_is_the_one_of_the_highest_step_not_of_the_latest_time(tmp_path: Path) -> None:
    for step in (100, 20, 9):
        save(tmp_path, step)
    assert [item.step for item in list_checkpoints(tmp_path)] == [9, 20, 100]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert latest_checkpoint(tmp_path / "absent") is None


def cut_short(folder: Path) -> None:
    (folder / "optimizer.pt").write_text("opt")


def lose_a_file(folder: Path) -> None:
    (folder / "rng_state.pth").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "checkpoint.json").unlink()


def half_a_manifest(folder: Path) -> None:
    text = (folder / "checkpoint.json").read_text()
    (folder / "checkpoint.json").write_text(text[: len(text) // 2])


def another_format(folder: Path) -> None:
    manifest = json.loads((folder / "checkpoint.json").read_text()) | {"format": 99}
    (folder / "checkpoint.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("harm", [cut_short, lose_a_file, lose_the_manifest, half_a_manifest, another_format])
def test_a_half_written_checkpoint_is_never_chosen(harm: Any, tmp_path: Path) -> None:
    save(tmp_path, 10)
    harm(save(tmp_path, 20))
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    drop_old_checkpoints(tmp_path, keep=2)
    assert [item.name for item in tmp_path.iterdir()] == ["checkpoint-10"]


def test_a_writer_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 10)

    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_checkpoint(tmp_path, fail, step=20, total_steps=100, job=JOB, loop={})
    assert [item.name for item in tmp_path.iterdir()] == ["checkpoint-10"]


def test_a_writer_that_forgets_a_file_publishes_nothing(tmp_path: Path) -> None:
    def forget(folder: Path) -> None:
        fill(folder)
        (folder / "optimizer.pt").unlink()

    with pytest.raises(TrainingError, match=r"lacks optimizer\.pt"):
        write_checkpoint(tmp_path, forget, step=20, total_steps=100, job=JOB, loop={})
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_while_writing_costs_only_that_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 10)
    code = f"""
import os
from pathlib import Path
from ftproject.engine.checkpoints import JobFacts, write_checkpoint
def fill(folder):
    (folder / "optimizer.pt").write_text("half")
    os.kill(os.getpid(), 9)
write_checkpoint(Path({str(tmp_path)!r}), fill, step=20, total_steps=100, job=JobFacts({{}}, "", "", {{}}), loop={{}})
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -9
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    save(tmp_path, 20)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-20"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save(tmp_path, step)
        drop_old_checkpoints(tmp_path, keep=2)
    assert [item.step for item in list_checkpoints(tmp_path)] == [10, 100]


def test_a_checkpoint_that_was_taken_over_outlives_the_folder_it_came_from(tmp_path: Path) -> None:
    source = save(tmp_path / "first", 20)
    adopted = adopt_checkpoint(source, tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    assert read(adopted.path).step == 20
    assert adopt_checkpoint(adopted.path, tmp_path / "second") == adopted


def test_where_links_do_not_reach_the_checkpoint_is_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    source = save(tmp_path / "first", 20)
    monkeypatch.setattr(os, "link", refuse)
    assert adopt_checkpoint(source, tmp_path / "second").step == 20


def test_the_same_job_continues_a_checkpoint_and_settings_that_change_no_weight_may_differ(tmp_path: Path) -> None:
    checkpoint = read(save(tmp_path, 20))
    assert continuation_problem(checkpoint, JOB) is None
    freed = {**CONFIG, "sft_config": CONFIG["sft_config"] | {"save_steps": 50, "report_to": "tensorboard"}}
    assert continuation_problem(checkpoint, replace(JOB, config=freed)) is None


def test_a_setting_that_the_checkpoint_did_not_know_yet_is_no_change(tmp_path: Path) -> None:
    newer = {**CONFIG, "sft_config": CONFIG["sft_config"] | {"max_grad_norm": 1.0}, "holdout_stratify": False}
    assert continuation_problem(read(save(tmp_path, 20)), replace(JOB, config=newer)) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {**CONFIG, "sft_config": {"learning_rate": 0.2}}}, "learning_rate was 0.1 and is 0.2"),
        ({"config": {**CONFIG, "holdout_fraction": 0.3}}, "holdout_fraction was 0.2 and is 0.3"),
        ({"backend": "unsloth"}, "made by the backend transformers"),
        ({"rows": ROWS | {"trained_count": 4}}, "4 rows, not 3"),
        ({"rows": ROWS | {"trained_sha256": "z"}}, "the training rows are not those"),
        ({"rows": ROWS | {"heldout_sha256": "z"}}, "the held-out rows are not those"),
    ],
)
def test_a_checkpoint_of_another_job_says_what_differs(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    problem = continuation_problem(read(save(tmp_path, 20)), replace(JOB, **change))
    assert problem is not None
    assert words in problem


def test_other_versions_and_another_device_are_named_and_refuse_nothing(tmp_path: Path) -> None:
    checkpoint = read(save(tmp_path, 20))
    other = replace(JOB, versions={"torch": "2.14.0"}, device="cuda")
    assert continuation_problem(checkpoint, other) is None
    assert changed_versions(checkpoint, other) == ["torch 2.13.0 is now 2.14.0", "the device cpu is now cuda"]
    assert changed_versions(checkpoint, JOB) == []
