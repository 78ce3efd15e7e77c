"""Base models: what is refused before loading, and which modules get an adapter."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine.configs import LoraSettings
from ftproject.engine.models import (
    ModelError,
    check_model_folder,
    is_out_of_memory,
    load_base_model,
    lora_target_regex,
    model_facts,
    training_dtype,
)
from tests.engine.support import TINY

ATTENTION = {"visual.blocks.N.attn.qkv", "visual.blocks.N.attn.proj"}
VISION_MLP = {"visual.blocks.N.mlp.linear_fc1", "visual.blocks.N.mlp.linear_fc2"}
LANGUAGE_ATTENTION = {f"language_model.layers.N.self_attn.{part}_proj" for part in "qkvo"}
LANGUAGE_MLP = {f"language_model.layers.N.mlp.{part}_proj" for part in ("gate", "up", "down")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(TINY, copy)
    return copy


def rewrite_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def code_of(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_model_folder(folder)
    return caught.value.code


def test_the_tiny_model_passes() -> None:
    assert check_model_folder(Path(TINY)).model_type == "qwen3_vl"
    assert check_model_folder(Path(TINY)).quantised is False


@pytest.mark.parametrize("model_type", ["llama", "qwen2_vl", None, ["qwen3_vl"]])
def test_another_model_type_is_refused(folder: Path, model_type: Any) -> None:
    if isinstance(model_type, list):
        rewrite_config(folder, model_type=str(model_type))
    else:
        rewrite_config(folder, model_type=model_type)
    assert code_of(folder) == "model_type_not_supported"


@pytest.mark.parametrize(
    "changes",
    [{"auto_map": {"AutoModel": "evil.Model"}}, {"text_config": {"x": [{"auto_map": {"AutoConfig": "evil.C"}}]}}],
)
def test_a_config_that_asks_for_remote_code_is_refused_also_when_nested(folder: Path, changes: Any) -> None:
    rewrite_config(folder, **changes)
    assert code_of(folder) == "model_remote_code"


def test_remote_code_beside_a_model_is_never_run(folder: Path) -> None:
    canary = folder / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    rewrite_config(folder, auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    with pytest.raises(ModelError):
        load_base_model(str(folder), device="cpu")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "extra.pt", "data.pkl"])
def test_a_pickle_in_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80")
    assert code_of(folder) == "model_not_safetensors"


def test_missing_weights_a_broken_config_and_a_missing_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert code_of(folder) == "model_not_safetensors"
    (folder / "config.json").write_text("[1]")
    assert code_of(folder) == "model_config_invalid"
    (folder / "config.json").write_text("{")
    assert code_of(folder) == "model_config_invalid"
    assert code_of(tmp_path / "gone") == "model_not_found"


def test_a_hub_model_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        model_facts("Qwen/Qwen3-VL-not-there")
    assert caught.value.code == "model_not_reachable"


def flags(bits: tuple[bool, ...]) -> LoraSettings:
    vision, language, attention, mlp = bits
    return LoraSettings(
        finetune_vision_layers=vision,
        finetune_language_layers=language,
        finetune_attention_modules=attention,
        finetune_mlp_modules=mlp,
    )


@pytest.fixture(scope="module")
def linear_names() -> list[str]:
    import torch

    modules = load_base_model(TINY, device="cpu").named_modules()
    return [name for name, part in modules if isinstance(part, torch.nn.Linear)]


def test_nine_flag_combinations_choose_exactly_the_expected_modules(linear_names: list[str]) -> None:
    names = linear_names
    assert any("merger" in name for name in names)
    legal = 0
    for bits in itertools.product([True, False], repeat=4):
        vision, language, attention, mlp = bits
        expected: set[str] = set()
        expected |= ATTENTION if vision and attention else set()
        expected |= VISION_MLP if vision and mlp else set()
        expected |= LANGUAGE_ATTENTION if language and attention else set()
        expected |= LANGUAGE_MLP if language and mlp else set()
        if not expected:
            with pytest.raises(ValueError, match="no module"):
                lora_target_regex(flags(bits))
            continue
        legal += 1
        chosen = [name for name in names if re.fullmatch(lora_target_regex(flags(bits)), name)]
        kinds = {re.sub(r"\.\d+\.", ".N.", name).removeprefix("model.") for name in chosen}
        assert kinds == expected
    assert legal == 9


def test_all_four_flags_choose_33_modules_of_the_tiny_model(linear_names: list[str]) -> None:
    assert sum(bool(re.fullmatch(lora_target_regex(LoraSettings()), name)) for name in linear_names) == 33


def test_a_base_is_loaded_in_the_precision_that_the_run_trains_in() -> None:
    import torch

    assert training_dtype("cuda", bf16=True, fp16=False) == torch.bfloat16
    assert training_dtype("cuda", bf16=False, fp16=True) == torch.float16
    assert training_dtype("cuda", bf16=False, fp16=False) == torch.float32
    assert training_dtype("cpu", bf16=True, fp16=False) == torch.float32
    assert load_base_model(TINY, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_base_model(TINY, device="cpu").dtype == torch.float32


def test_four_bit_leaves_the_vision_tower_and_the_output_layer_as_they_are() -> None:
    model = load_base_model(TINY, device="cpu", load_in_4bit=True)
    quantised = [name for name, part in model.named_modules() if type(part).__name__ == "Linear4bit"]
    assert len(quantised) == 3 * (4 + 3)
    assert all(name.startswith("model.language_model.layers.") for name in quantised)


def test_lack_of_memory_is_told_from_other_errors() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
