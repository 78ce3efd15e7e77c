"""The engine on a real CUDA device; skipped where there is none."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.backends import get_backend
from ftproject.engine.backends.base import TrainingError, TrainingJob, TrainingResult
from ftproject.engine.configs import parse_training_config, resolve_training_config
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.gpu import device_facts
from ftproject.engine.merging import FROM_16_BIT, TRAINED_IN_4_BIT, merge_adapter
from ftproject.engine.models import UNQUANTISED_MODULES, load_base_model
from ftproject.engine.training import peak_memory_mb, train
from tests.engine.support import SHORT, TINY, Recorder, training_job

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not device_facts().cuda, reason="no CUDA device")]
Rows = list[ResolvedConversation]


def job(folder: Path, rows: Rows, heldout: Any = (), *, model: dict[str, Any] | None = None, **sft: Any) -> TrainingJob:
    settings = {"learning_rate": 4e-3, "max_steps": 12, "warmup_steps": 2, "per_device_train_batch_size": 8}
    body = {"model_config_data": {"model_name": "tiny-qwen3-vl", **(model or {})}, "sft_config": settings | sft}
    effective = resolve_training_config(
        parse_training_config(body), device_facts(), models_dir=folder, backend="transformers"
    )
    return replace(training_job(folder, rows, heldout), effective=effective)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digit_rows: Rows) -> tuple[TrainingResult, Recorder]:
    recorder = Recorder()
    result = train(job(tmp_path_factory.mktemp("bf16"), digit_rows[:64], digit_rows[64:80]), recorder)
    return result, recorder


def test_the_tiny_model_trains_in_bfloat16(trained: tuple[TrainingResult, Recorder]) -> None:
    result, recorder = trained
    assert result.adapter_effective is True
    assert all(math.isfinite(loss) for loss in recorder.losses)
    assert recorder.losses[-1] < recorder.losses[0]
    assert 0 < result.peak_memory_mb <= peak_memory_mb()


def test_one_base_answers_with_and_without_the_adapter(
    trained: tuple[TrainingResult, Recorder], digit_rows: Rows
) -> None:
    model = get_backend("transformers", device_facts()).load("tiny-qwen3-vl", TINY)
    rows = digit_rows[:8]
    before = [answer.text for answer in model.generate(rows, SHORT, adapter=None)]
    tuned = [answer.text for answer in model.generate(rows, SHORT, adapter=trained[0].adapter_path)]
    assert [answer.text for answer in model.generate(rows, SHORT, adapter=None)] == before != tuned
    assert model.memory_mb() > 0


@pytest.mark.parametrize("sft", [{"fp16": True}, {"bf16": False}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("optim", ["adamw_8bit", "adamw_torch_fused"])
def test_every_precision_and_optimizer_of_cuda_trains(
    tmp_path: Path, digit_rows: Rows, sft: dict[str, Any], optim: str
) -> None:
    recorder = Recorder()
    result = train(job(tmp_path, digit_rows[:32], optim=optim, max_steps=6, **sft), recorder)
    assert result.adapter_effective is True
    assert all(math.isfinite(loss) for loss in recorder.losses)


def test_a_four_bit_base_trains_and_is_merged_into_16_bit(tmp_path: Path, digit_rows: Rows) -> None:
    result = train(job(tmp_path, digit_rows[:32], model={"load_in_4bit": True}, max_steps=6), Recorder())
    assert result.adapter_effective is True
    merged = merge_adapter(result.adapter_path, TINY, tmp_path / "merged")
    assert (merged.weights_from, merged.warnings[:1]) == (FROM_16_BIT, [TRAINED_IN_4_BIT])
    assert merged.check.passed


def test_four_bit_on_the_gpu_leaves_the_vision_tower_as_it_is() -> None:
    model = load_base_model(TINY, device="cuda", load_in_4bit=True)
    quantised = [name for name, part in model.named_modules() if type(part).__name__ == "Linear4bit"]
    assert quantised
    assert not any(name.startswith(part) for name in quantised for part in UNQUANTISED_MODULES)


def test_loader_processes_and_none_give_the_same_losses(tmp_path: Path, digit_rows: Rows) -> None:
    curves = []
    for workers in (0, 2):
        recorder = Recorder()
        train(job(tmp_path / str(workers), digit_rows[:32], max_steps=4, dataloader_num_workers=workers), recorder)
        curves.append(recorder.losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-2)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Lets torch have 64 MiB more than it holds now."""
    import torch

    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64 * 2**20) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_a_run_that_does_not_fit_ends_with_advice(tmp_path: Path, digit_rows: Rows) -> None:
    rows = digit_rows[:64]
    with pytest.raises(TrainingError) as caught:
        train(job(tmp_path, rows, model={"min_pixels": 1_000_000, "max_pixels": 1_000_000}), Recorder())
    assert caught.value.code == "out_of_memory"
    assert "per_device_train_batch_size" in caught.value.message
