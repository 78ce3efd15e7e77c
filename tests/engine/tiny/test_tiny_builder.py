"""The builder: a few real training steps make a folder in the real model's layout, each time the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ftproject.engine.tiny.architecture import IMAGE_TOKENS
from ftproject.engine.tiny.builder import BuildReport, OutputNotEmptyError, build_tiny_model
from ftproject.engine.tiny.drawings import PROMPTS, draw_sample
from ftproject.engine.tiny.pretraining import PEAK_LEARNING_RATE, TaskEncoder, learning_rate, patchify
from ftproject.engine.tiny.tokenizer import chat_template

EXPECTED_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
}


def build(folder: Path, *, steps: int = 2, seed: int = 0, threads: int = 1, held_out_per_task: int = 2) -> BuildReport:
    return build_tiny_model(folder, steps=steps, seed=seed, threads=threads, held_out_per_task=held_out_per_task)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    return build(tmp_path_factory.mktemp("builds") / "tiny")


def test_the_folder_holds_the_files_of_a_real_model_and_no_leftover(report: BuildReport) -> None:
    assert {path.name for path in report.output_dir.iterdir()} == EXPECTED_FILES
    assert [path.name for path in report.output_dir.parent.iterdir()] == ["tiny"]


def test_the_folder_loads_as_a_qwen3_vl_and_generates(report: BuildReport) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(report.output_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(report.output_dir)
    batch = TaskEncoder(tokenizer).encode([draw_sample(0, "shape")])
    del batch["labels"]

    output = model.generate(**batch, max_new_tokens=2)

    assert model.config.model_type == "qwen3_vl"
    assert model.num_parameters() == report.parameters
    assert output.shape[1] <= batch["input_ids"].shape[1] + 2
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.generation_config.do_sample is False


def test_the_weights_are_saved_in_bfloat16(report: BuildReport) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(report.output_dir, dtype="auto")

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert report.file_bytes["model.safetensors"] < 2.2 * report.parameters


def test_the_report_names_every_task_and_what_the_build_cost(report: BuildReport) -> None:
    assert set(report.held_out_exact_match) == set(PROMPTS)
    assert all(0 <= score <= 1 for score in report.held_out_exact_match.values())
    assert report.cpu_seconds > 0
    assert report.file_bytes == {path.name: path.stat().st_size for path in report.output_dir.iterdir()}


def test_the_video_config_is_written_so_that_torchvision_may_be_installed(report: BuildReport) -> None:
    video = json.loads((report.output_dir / "video_preprocessor_config.json").read_text())
    image = json.loads((report.output_dir / "preprocessor_config.json").read_text())

    assert video["video_processor_type"] == "Qwen3VLVideoProcessor"
    assert image["image_processor_type"] == "Qwen2VLImageProcessorFast"


def test_the_chat_template_stands_beside_the_tokenizer(report: BuildReport) -> None:
    assert (report.output_dir / "chat_template.jinja").read_text(encoding="utf-8") == chat_template()


def test_two_builds_of_one_seed_are_byte_identical_and_another_seed_is_not(report: BuildReport, tmp_path: Path) -> None:
    again, other = build(tmp_path / "again").output_dir, build(tmp_path / "other", seed=1).output_dir
    weights = "model.safetensors"

    for name in EXPECTED_FILES:
        assert (again / name).read_bytes() == (report.output_dir / name).read_bytes(), name
    assert (other / weights).read_bytes() != (again / weights).read_bytes()


def test_a_build_lowers_the_loss_and_tells_of_every_step(tmp_path: Path) -> None:
    told: list[tuple[int, int, float]] = []

    build_tiny_model(
        tmp_path / "tiny",
        steps=8,
        held_out_per_task=1,
        on_progress=lambda step, steps, loss: told.append((step, steps, loss)),
    )

    assert [(step, steps) for step, steps, _ in told] == [(step, 8) for step in range(1, 9)]
    assert told[-1][2] < told[0][2] - 0.1


def test_a_build_leaves_the_processs_thread_count_and_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.random.get_rng_state()

    build(tmp_path / "tiny", steps=1, held_out_per_task=1, threads=before[0] + 1)

    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_a_folder_in_use_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(OutputNotEmptyError, match="is not empty"):
        build(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["steps", "threads", "held_out_per_task"])
def test_a_count_below_one_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        build(tmp_path / "tiny", **{name: 0})

    assert not (tmp_path / "tiny").exists()


def test_a_build_that_fails_midway_leaves_no_folder(tmp_path: Path) -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_tiny_model(tmp_path / "tiny", steps=2, on_progress=stop)

    assert list(tmp_path.iterdir()) == []


def test_patches_equal_those_of_the_image_processor_that_users_meet(report: BuildReport) -> None:
    images = [draw_sample(index, "describe").images[0] for index in range(3)]
    processor = Qwen2VLImageProcessorPil.from_pretrained(report.output_dir)

    expected = processor(images=images, return_tensors="pt")

    assert torch.allclose(
        patchify(np.stack([np.asarray(image) for image in images])), expected["pixel_values"], atol=1e-6
    )
    assert expected["image_grid_thw"].prod(dim=1).tolist() == [4 * IMAGE_TOKENS] * 3


def test_encoded_text_equals_what_the_chat_template_renders(report: BuildReport) -> None:
    tokenizer = AutoTokenizer.from_pretrained(report.output_dir)
    sample = draw_sample(3, "same_shape")
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": sample.prompt}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": sample.answer}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)

    ids = TaskEncoder(tokenizer).encode([sample])["input_ids"][0]

    expanded = rendered.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS)
    assert tokenizer.decode(ids) + "\n" == expanded


def test_labels_cover_the_answer_and_the_end_of_the_turn_only(report: BuildReport) -> None:
    tokenizer = AutoTokenizer.from_pretrained(report.output_dir)
    short, long = draw_sample(0, "letter"), draw_sample(0, "describe")

    batch = TaskEncoder(tokenizer).encode([short, long])

    for sample, labels in zip((short, long), batch["labels"], strict=True):
        assert tokenizer.decode(labels[labels != -100]) == f"{sample.answer}<|im_end|>"
    assert batch["attention_mask"].sum(dim=1).tolist() == (batch["input_ids"] != 0).sum(dim=1).tolist()


def test_the_learning_rate_warms_up_peaks_once_and_ends_at_three_percent() -> None:
    rates = [learning_rate(step, 1500) for step in range(1500)]

    assert rates[0] < 0.02 * PEAK_LEARNING_RATE
    assert 0.97 * PEAK_LEARNING_RATE < max(rates) <= PEAK_LEARNING_RATE
    assert 90 <= int(np.argmax(rates)) <= 110
    assert rates[-1] == pytest.approx(0.03 * PEAK_LEARNING_RATE, rel=0.01)
