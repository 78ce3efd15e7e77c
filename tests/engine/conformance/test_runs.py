"""What a run reports and how its adapter answers, the same in both backends."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ftproject.engine.conversations import ResolvedConversation
from tests.engine.conformance import unsloth_on_cpu
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
    assert trained.result.metrics["eval_exact_match"] is not None


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


def tensors(adapter: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = load_file(str(adapter / "adapter_model.safetensors"))
    return loaded


def test_an_evaluation_after_the_last_step_does_not_round_the_adapter(
    subject: Subject, digit_rows: Any, tmp_path: Path
) -> None:
    """Unsloth's trainer turns bf16_full_eval on with bf16; Trainer.evaluate would cast the model for good."""
    import torch

    job = subject.job(tmp_path, digit_rows[:8], digit_rows[8:12], max_steps=2, forced={"bf16": True})
    result = subject.backend.train(job, Recorder())
    assert result.metrics["eval_loss"] is not None
    saved = tensors(result.adapter_path)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in saved.values())


def test_gradient_checkpointing_changes_nothing_but_the_memory(
    subject: Subject, digit_rows: Any, tmp_path: Path
) -> None:
    import torch

    if unsloth_on_cpu.wanted():
        pytest.skip("Unsloth's checkpointing keeps activations in pinned memory, which only CUDA has")
    results = {}
    for wanted in (False, True):
        recorder = Recorder()
        job = subject.job(tmp_path / str(wanted), digit_rows[:16], max_steps=2, gradient_checkpointing=wanted)
        results[wanted] = subject.backend.train(job, recorder).adapter_path, recorder.losses
    assert results[True][1] == pytest.approx(results[False][1], rel=1e-4)
    with_it, without = tensors(results[True][0]), tensors(results[False][0])
    # Re-entrant checkpointing gives the vision tower no gradient at all: its input needs none.
    assert any(tensor.any() for name, tensor in with_it.items() if "visual" in name and "lora_B" in name)
    for name, tensor in with_it.items():
        assert torch.allclose(tensor, without[name], atol=1e-4), name


def test_a_resumed_run_ends_where_the_straight_run_ends(subject: Subject, digit_rows: Any, tmp_path: Path) -> None:
    import torch

    settings = {"max_steps": 4, "save_steps": 2, "save_total_limit": 5}
    straight = subject.backend.train(subject.job(tmp_path / "a", digit_rows[:32], **settings), Recorder())
    recorder = Recorder()
    checkpoint = tmp_path / "a" / "work" / "checkpoint-2"
    job = subject.job(tmp_path / "b", digit_rows[:32], resume_from_checkpoint=checkpoint, **settings)
    resumed = subject.backend.train(job, recorder)
    assert [item.step for item in recorder.progress if item.loss is not None] == [3, 4]
    one, two = tensors(straight.adapter_path), tensors(resumed.adapter_path)
    exact = not subject.device.cuda
    assert all(torch.equal(one[name], two[name]) if exact else one[name].allclose(two[name], atol=1e-2) for name in one)


def test_a_four_bit_base_trains_and_its_adapter_is_still_float32(
    subject: Subject, digit_rows: Any, tmp_path: Path
) -> None:
    """NF4 by bitsandbytes, the vision tower left as it is; on a CPU too, where it is slower and off by default."""
    import torch

    if unsloth_on_cpu.wanted():
        pytest.skip("Unsloth quantises on CUDA only")
    job = subject.job(tmp_path, digit_rows[:16], max_steps=3)
    config = job.effective.config
    four_bit = replace(job.effective, config=replace(config, model=replace(config.model, load_in_4bit=True)))
    recorder = Recorder()
    result = subject.backend.train(replace(job, effective=four_bit), recorder)
    assert result.adapter_effective is True
    assert all(math.isfinite(loss) for loss in recorder.losses)
    plain = Recorder()
    subject.backend.train(subject.job(tmp_path / "plain", digit_rows[:16], max_steps=3), plain)
    assert recorder.losses == pytest.approx(plain.losses, rel=0.1)
    assert recorder.losses != plain.losses
    assert {tensor.dtype for tensor in tensors(result.adapter_path).values()} == {torch.float32}
