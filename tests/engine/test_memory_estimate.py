"""The memory estimate: its counts are those of the real model and adapter, its refusals name the file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ftproject.engine.configs import LoraSettings, TrainingConfig
from ftproject.engine.memory_estimate import (
    MIB,
    adapter_disk_mb,
    estimate_memory,
    lora_parameters,
    read_model_shape,
    weight_sizes,
)
from ftproject.engine.token_counts import TokenCountError
from tests.engine.conftest import TrainedAdapter
from tests.engine.support import TINY, effective_config


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"finetune_vision_layers": False},
        {"finetune_language_layers": False, "r": 4},
        {"finetune_mlp_modules": False},
        {"finetune_attention_modules": False, "r": 64},
    ],
)
def test_the_adapters_parameters_are_counted_as_the_chosen_modules_have_them(flags: dict[str, int]) -> None:
    import re

    from safetensors import safe_open

    from ftproject.engine.models import lora_target_regex

    lora = LoraSettings(**flags)  # type: ignore[arg-type]
    targets, counted = re.compile(lora_target_regex(lora)), 0
    with safe_open(f"{TINY}/model.safetensors", "np") as weights:
        for name in weights.keys():  # noqa: SIM118 - not a mapping
            if targets.fullmatch(name.removesuffix(".weight")) and name.endswith(".weight"):
                counted += lora.r * sum(weights.get_slice(name).get_shape())
    assert counted > 0
    assert lora_parameters(read_model_shape(TINY), lora) == counted


@pytest.mark.slow
def test_a_real_training_stays_near_its_estimate(trained: TrainedAdapter) -> None:
    config = effective_config().config
    terms = {term.name: term.mb for term in estimate_memory(TINY, config, cuda=False, longest=40, longest_vision=4)}
    saved = (trained.path / "adapter_model.safetensors").stat().st_size / MIB
    assert terms["adapter"] == pytest.approx(saved, rel=0.05)
    assert adapter_disk_mb(TINY, config) > saved
    # The peak is that of the test process, which holds more than a run process does.
    assert 0.4 * sum(terms.values()) < (trained.result.peak_memory_mb or 0)


def test_each_tensor_is_counted_from_the_heads_of_the_files() -> None:
    sizes = weight_sizes(TINY)
    stored = Path(TINY, "model.safetensors").stat().st_size
    assert stored - 65_536 < sum(size for size, _ in sizes.values()) < stored
    assert all(size == 2 * parameters for size, parameters in sizes.values())


def test_a_longer_row_a_larger_batch_and_no_checkpointing_take_more() -> None:
    base = TrainingConfig()
    checkpointed = replace(base, sft=replace(base.sft, gradient_checkpointing=True))
    larger = replace(base, sft=replace(base.sft, per_device_train_batch_size=16))

    def total(config: TrainingConfig, longest: int = 500) -> float:
        return sum(t.mb for t in estimate_memory(TINY, config, cuda=True, longest=longest, longest_vision=100))

    assert total(checkpointed) < total(base) < total(base, 1000) < total(larger)
    assert total(replace(base, sft=replace(base.sft, optim="adamw_torch"))) > total(base)
    assert total(replace(base, model=replace(base.model, load_in_4bit=True))) < total(base)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_without_its_files_is_refused_by_name(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(TokenCountError, match=f"{name} of model is not on this disk"):
        estimate_memory(str(model), TrainingConfig(), cuda=False, longest=10, longest_vision=0)


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[x"])
def test_damaged_weights_are_refused_by_name(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(TokenCountError, match=r"model\.safetensors cannot be read"):
        weight_sizes(str(model))


def test_a_mixture_of_experts_is_not_estimated(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_vl_moe"}))
    with pytest.raises(TokenCountError, match="dense"):
        read_model_shape(str(model))


def test_a_config_that_lacks_a_size_is_refused(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "qwen3_vl", "text_config": {}, "vision_config": {}}')
    with pytest.raises(TokenCountError, match="num_attention_heads"):
        read_model_shape(str(model))


def test_an_index_names_the_shards(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(weight_sizes(TINY), "model-1.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_sizes(str(model)) == weight_sizes(TINY)
