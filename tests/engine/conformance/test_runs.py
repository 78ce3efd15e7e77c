"""What a run reports and how its adapter answers, the same in both backends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.conversations import ResolvedConversation
from tests.engine.conformance.conftest import LONG_ROW, Trained
from tests.engine.conformance.subjects import Subject
from tests.engine.support import SHORT, Recorder

pytestmark = pytest.mark.slow


def texts(model: Any, rows: Any, adapter: Path | None = None) -> list[str]:
    return [answer.text for answer in model.generate(rows, SHORT, adapter=adapter)]


def test_it_goes_through_the_phases_and_counts_its_steps(trained: Trained) -> None:
    assert trained.recorder.phases == ["loading_model", "preparing_data", "training", "saving"]
    assert (trained.result.steps, trained.result.total_steps) == (4, 4)
    assert trained.recorder.progress[-1].step == 4
    assert len(trained.recorder.losses) == 4
    assert all(math.isfinite(loss) for loss in trained.recorder.losses)
    assert trained.recorder.losses[-1] < trained.recorder.losses[0]


def test_a_row_that_is_too_long_is_reported_and_not_cut(trained: Trained) -> None:
    [skipped] = trained.result.skipped_rows
    assert skipped.index == LONG_ROW
    assert "more than max_seq_length 256" in skipped.reason
    assert any("1 rows skipped" in warning or "1 row skipped" in warning for warning in trained.recorder.warnings)


def test_the_held_out_loss_is_measured_while_training_and_at_the_end(trained: Trained) -> None:
    measured = [item.eval_loss for item in trained.recorder.progress if item.eval_loss is not None]
    assert len(measured) >= 2
    assert trained.result.metrics["eval_loss"] == pytest.approx(measured[-1], rel=1e-3)


def test_the_effect_is_measured(trained: Trained, subject: Subject, digit_rows: Any, tmp_path: Path) -> None:
    assert trained.result.adapter_effective is True
    job = subject.job(tmp_path, digit_rows[:8], max_steps=1, warmup_steps=5)  # the first step's rate is zero
    recorder = Recorder()
    assert subject.backend.train(job, recorder).adapter_effective is False
    assert any("does not change" in warning for warning in recorder.warnings)


def test_the_base_answers_the_same_before_and_after_an_adapter(trained: Trained, digit_rows: Any) -> None:
    model = trained.subject.loaded()
    rows = digit_rows[100:112]
    before = texts(model, rows)
    tuned = texts(model, rows, trained.path)
    assert texts(model, rows) == before
    assert tuned != before
    assert texts(model, rows, trained.path) == tuned


def test_padding_on_the_left_lets_a_batch_answer_as_each_row_alone(
    trained: Trained, varied_rows: list[ResolvedConversation]
) -> None:
    if trained.subject.device.cuda:
        pytest.skip("half precision breaks ties differently in batches")
    model = trained.subject.loaded()
    together = texts(model, varied_rows, trained.path)
    assert together == [texts(model, [item], trained.path)[0] for item in varied_rows]
    assert model.processor.tokenizer.padding_side == "right"


def test_the_same_seed_gives_the_same_losses(trained: Trained, digit_rows: Any, tmp_path: Path) -> None:
    curves = []
    for place in ("one", "two"):
        recorder = Recorder()
        trained.subject.backend.train(trained.subject.job(tmp_path / place, digit_rows[:16], max_steps=2), recorder)
        curves.append(recorder.losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-6 if not trained.subject.device.cuda else 1e-2)


def test_a_stop_leaves_an_adapter_and_a_checkpoint(subject: Subject, digit_rows: Any, tmp_path: Path) -> None:
    recorder = Recorder(stop_after=8)
    result = subject.backend.train(subject.job(tmp_path, digit_rows[:16], max_steps=50), recorder)
    assert result.stopped_early is True
    assert result.steps < 50
    assert (result.adapter_path / "adapter_model.safetensors").is_file()
    assert result.checkpoint_path is not None
