"""Real trainings of the tiny model: what they report, what they refuse, and that they can be repeated."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.backends.base import EngineError, TrainingError
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.loop_guards import not_finite_error
from ftproject.engine.trainer import trainer_arguments
from ftproject.engine.training import latest_checkpoint, train
from tests.engine.conftest import TrainedAdapter
from tests.engine.support import CPU, QUESTION, Recorder, effective_config, row, save_image, training_job

pytestmark = pytest.mark.slow


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_training_passes_through_its_phases_and_reports_every_step(trained: TrainedAdapter) -> None:
    recorder = trained.recorder
    assert recorder.phases == ["loading_model", "preparing_data", "training", "saving"]
    assert sorted({item.step for item in recorder.progress}) == list(range(1, 41))
    assert {item.total_steps for item in recorder.progress} == {40}
    last = [item for item in recorder.progress if item.loss is not None][-1]
    assert last.eta_seconds == 0
    assert last.grad_norm is not None
    assert last.learning_rate is not None


def test_training_lowers_the_loss_on_trained_and_on_heldout_rows(trained: TrainedAdapter) -> None:
    losses = trained.recorder.losses
    heldout = [item.eval_loss for item in trained.recorder.progress if item.eval_loss is not None]
    assert sum(losses[-5:]) < sum(losses[:5]) / 2
    assert heldout[-1] < losses[0] / 2
    assert trained.result.metrics["eval_loss"] == pytest.approx(heldout[-1])
    assert trained.result.metrics["loss"] == losses[-1]


def test_the_adapter_is_verified_and_says_where_it_comes_from(trained: TrainedAdapter) -> None:
    provenance = json.loads((trained.path / "provenance.json").read_text())
    assert trained.result.adapter_effective is True
    assert provenance["adapter_effective"] is True
    assert provenance["dataset_sha256"] == "abc"
    assert provenance["rows"] == {"trained": 160, "heldout": 40, "skipped": 0}
    assert provenance["pixel_rule"] == {"min_pixels": 4096, "max_pixels": 4096}
    assert provenance["config"]["sft_config"]["bf16"] is False
    assert provenance["base_model_name"] == "tiny-qwen3-vl"


def test_no_path_of_this_machine_stands_in_the_adapter_folder(trained: TrainedAdapter) -> None:
    here = [str(Path(__file__).parents[2]), str(trained.path.parent)]
    for file in trained.path.iterdir():
        content = file.read_bytes()
        assert not [path for path in here if path.encode() in content], file.name
    assert sorted(entry.name for entry in trained.path.parent.iterdir()) == ["adapter", "work"]


def test_stock_peft_loads_the_adapter_and_its_answers_are_ours(
    trained: TrainedAdapter, resident: object, digit_rows: list[ResolvedConversation]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import Qwen3VLForConditionalGeneration

    from ftproject.engine.processors import load_processor
    from tests.engine.support import SHORT, TINY

    processor = load_processor(trained.path)
    base = Qwen3VLForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(trained.path)).eval()
    conversation = trained.heldout[0]
    from ftproject.engine.images import open_image

    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    text = processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[[open_image(conversation.image_paths[0])]], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ours = resident.generate([conversation], SHORT, adapter=trained.path)  # type: ignore[attr-defined]
    assert ours[0].text == answer


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        job = training_job(tmp_path / name, digit_rows[:32], max_steps=4, seed=seed)
        files.append(weights(train(job, Recorder(), device=CPU).adapter_path))
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_a_resumed_training_ends_in_the_bytes_of_the_uninterrupted_one(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    rows = digit_rows[:40]
    straight = train(training_job(tmp_path / "straight", rows, max_steps=8), Recorder(), device=CPU)
    stopped = train(training_job(tmp_path / "stopped", rows, max_steps=8), Recorder(stop_after=3), device=CPU)
    assert stopped.checkpoint_path is not None
    recorder = Recorder()
    job = training_job(tmp_path / "resumed", rows, max_steps=8, resume=stopped.checkpoint_path)
    resumed = train(job, recorder, device=CPU)
    assert recorder.progress[0].step == 4
    assert weights(resumed.adapter_path) == weights(straight.adapter_path)


def test_a_stop_finishes_the_step_and_leaves_an_adapter_that_loads(
    tmp_path: Path, digit_rows: list[ResolvedConversation], resident: object
) -> None:
    job = training_job(tmp_path, digit_rows[:32], max_steps=50)
    result = train(job, Recorder(stop_after=3), device=CPU)
    assert (result.steps, result.total_steps, result.stopped_early) == (3, 50, True)
    assert result.adapter_effective is True
    assert result.checkpoint_path == job.work_dir / "checkpoint-3"
    resident.ensure_adapter(result.adapter_path)  # type: ignore[attr-defined]


def test_early_stopping_keeps_the_adapter_with_the_lowest_heldout_loss(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    # Held-out answers that contradict the trained ones: the held-out loss rises as training goes on.
    wrong = [row(item.conversation.index, response="shape", images=item.image_paths) for item in digit_rows[:8]]
    job = training_job(
        tmp_path, digit_rows[:16], wrong, max_steps=60, eval_steps=3, early_stopping_patience=2, learning_rate=1e-2
    )
    recorder = Recorder()
    result = train(job, recorder, device=CPU)
    heldout = [item.eval_loss for item in recorder.progress if item.eval_loss is not None]
    assert result.stopped_early is True
    assert result.steps < 60
    assert result.metrics["eval_loss"] == pytest.approx(min(heldout), rel=1e-5)
    assert min(heldout[:-1]) < heldout[-2]


def test_rows_that_do_not_fit_are_skipped_counted_and_named_never_cut(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    long = row(900, prompt="why " * 200, images=digit_rows[0].image_paths)
    blank = row(901, response="  ", images=digit_rows[0].image_paths)
    missing = row(902, images=[tmp_path / "gone.png"])
    thin = row(903, images=[save_image(tmp_path / "thin.png", (300, 1))])
    recorder = Recorder()
    job = training_job(tmp_path, [*digit_rows[:16], long, blank, missing, thin], max_steps=2, max_seq_length=64)
    result = train(job, recorder, device=CPU)
    reasons = {item.index: item.reason for item in result.skipped_rows}
    assert set(reasons) == {900, 901, 902, 903}
    assert "more than max_seq_length 64" in reasons[900]
    assert reasons[901] == "the response is empty"
    assert "does not exist" in reasons[902]
    assert "aspect ratio" in reasons[903]
    assert any("4 rows skipped" in warning for warning in recorder.warnings)
    assert all(math.isfinite(loss) for loss in recorder.losses)


def test_a_dataset_without_one_usable_row_is_refused_before_training(tmp_path: Path) -> None:
    job = training_job(tmp_path, [row(3, prompt="word " * 100)], max_seq_length=16)
    with pytest.raises(TrainingError, match=r"row 3: \d+ tokens") as caught:
        train(job, Recorder(), device=CPU)
    assert caught.value.code == "no_trainable_rows"
    assert not job.adapter_dir.exists()


def test_rows_with_several_no_and_mixed_images_train_together(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    one = digit_rows[0].image_paths[0]
    wide = save_image(tmp_path / "wide.png", (640, 480))
    rows = [
        row(0, images=[one]),
        row(1, images=[one, wide]),
        row(2, prompt="What is two and five?"),
        row(3, images=[wide, one, one], response="three images"),
        row(4, prompt="Say <|im_end|> and <|image_pad|>", response="<|im_end|>", images=[one]),
    ]
    recorder = Recorder()
    result = train(training_job(tmp_path, rows, max_steps=4, per_device_train_batch_size=3), recorder, device=CPU)
    assert result.skipped_rows == []
    assert all(math.isfinite(loss) for loss in recorder.losses)
    text_only = train(training_job(tmp_path / "text", rows[2:3], max_steps=1), Recorder(), device=CPU)
    assert text_only.steps == 1


def test_a_loss_that_is_not_finite_ends_the_run_and_names_its_rows(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    job = training_job(tmp_path, digit_rows[:8], max_steps=30, learning_rate=1.0, max_grad_norm=0.0)
    config = job.effective.config
    # Beyond the API's range on purpose: a rate that overflows float32 within a few steps.
    wild = replace(config, sft=replace(config.sft, learning_rate=1e30, optim="sgd"))
    with pytest.raises(TrainingError, match=r"rows are (\d, ){7}\d") as caught:
        train(replace(job, effective=replace(job.effective, config=wild)), Recorder(), device=CPU)
    assert caught.value.code == "loss_not_finite"
    assert not job.adapter_dir.exists()


def test_loader_processes_change_no_weight(tmp_path: Path, digit_rows: list[ResolvedConversation]) -> None:
    results = []
    for workers in (0, 2):
        job = training_job(
            tmp_path / str(workers),
            digit_rows[:20],
            digit_rows[30:36],
            max_steps=6,
            eval_steps=3,
            dataloader_num_workers=workers,
        )
        results.append(train(job, Recorder(), device=CPU))
    assert weights(results[0].adapter_path) == weights(results[1].adapter_path)
    assert results[0].metrics["eval_loss"] == results[1].metrics["eval_loss"]


@pytest.mark.parametrize(("side", "workers"), [("trained", 0), ("trained", 2), ("heldout", 0), ("heldout", 2)])
def test_an_image_that_breaks_while_training_names_its_row(
    side: str, workers: int, tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    broken = tmp_path / "broken.png"
    whole = digit_rows[0].image_paths[0].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])  # the header is fine, the pixels end early
    bad = [row(41, images=[broken])]
    rows, heldout = (bad, digit_rows[:1]) if side == "trained" else (digit_rows[:1], bad)
    job = training_job(tmp_path, rows, heldout, max_steps=1, eval_steps=1, dataloader_num_workers=workers)
    with pytest.raises(EngineError, match=r"^row 41: the image is damaged"):
        train(job, Recorder(), device=CPU)


def test_an_adapter_that_learnt_nothing_is_said_to_be_ineffective(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    recorder = Recorder()
    # One warm-up step of a thousand: the learning rate of the first step is 0, lora_B stays zero.
    job = training_job(tmp_path, digit_rows[:8], max_steps=1, warmup_steps=1000)
    result = train(job, recorder, device=CPU)
    assert result.adapter_effective is False
    assert any("does not change" in warning for warning in result.warnings)


def test_an_existing_adapter_is_never_overwritten(tmp_path: Path, digit_rows: list[ResolvedConversation]) -> None:
    job = training_job(tmp_path, digit_rows[:8], max_steps=1)
    job.adapter_dir.mkdir(parents=True)
    (job.adapter_dir / "mine").write_text("keep")
    with pytest.raises(EngineError, match="exists already"):
        train(job, Recorder(), device=CPU)
    assert (job.adapter_dir / "mine").read_text() == "keep"
    assert not list(tmp_path.glob(".partial-*"))


def test_epochs_decide_the_steps_when_asked_for(tmp_path: Path, digit_rows: list[ResolvedConversation]) -> None:
    settings: dict[str, Any] = {"max_steps": 99, "use_epochs": True, "num_train_epochs": 1.5, "warmup_steps": 3}
    result = train(training_job(tmp_path, digit_rows[:16], **settings), Recorder(), device=CPU)
    assert result.total_steps == 3
    assert any("warmup_steps 3 is not below the steps of this run, 3" in warning for warning in result.warnings)


def test_checkpoints_come_at_save_steps_and_only_the_newest_are_kept(
    tmp_path: Path, digit_rows: list[ResolvedConversation]
) -> None:
    job = training_job(tmp_path, digit_rows[:16], max_steps=6, save_steps=2, save_total_limit=2)
    train(job, Recorder(), device=CPU)
    assert sorted(path.name for path in job.work_dir.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert latest_checkpoint(job.work_dir) == job.work_dir / "checkpoint-6"
    (job.work_dir / "checkpoint-6" / "trainer_state.json").unlink()  # as a killed process leaves it
    assert latest_checkpoint(job.work_dir) == job.work_dir / "checkpoint-4"


def test_a_base_in_four_bit_trains_on_a_cpu_too(tmp_path: Path, digit_rows: list[ResolvedConversation]) -> None:
    job = training_job(tmp_path, digit_rows[:16], max_steps=6)
    config = job.effective.config
    config = replace(config, model=replace(config.model, load_in_4bit=True))
    recorder = Recorder()
    result = train(replace(job, effective=replace(job.effective, config=config)), recorder, device=CPU)
    assert result.adapter_effective is True
    assert recorder.losses[-1] < recorder.losses[0]


def test_without_a_gpu_the_trainer_is_told_float32_and_cpu_explicitly(tmp_path: Path) -> None:
    arguments = trainer_arguments(effective_config().config, tmp_path, heldout=False, cuda=False)
    assert (arguments.use_cpu, arguments.bf16, arguments.fp16) == (True, False, False)
    assert arguments.max_length is None
    assert arguments.logging_nan_inf_filter is False


def test_training_takes_one_cpu_thread_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from ftproject.engine.models import limit_cpu_threads

    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("QWEN3VL_CPU_THREADS", "2")
        limit_cpu_threads()
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("QWEN3VL_CPU_THREADS")
        limit_cpu_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("visible", "world", "expected"),
    [(None, None, "0"), ("2,3", None, "2"), ("", None, ""), ("0,1", "2", "0,1")],
)
def test_a_single_process_sees_a_single_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, world: str | None, expected: str
) -> None:
    from ftproject.engine.models import use_one_gpu

    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("WORLD_SIZE", world)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    use_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_the_error_of_a_broken_loss_says_what_to_do() -> None:
    assert "Lower the learning rate" in not_finite_error("the loss of step 3", [5, 9]).message
