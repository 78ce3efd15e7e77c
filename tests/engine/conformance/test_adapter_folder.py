"""Whatever the backend, the adapter folder is the same: files, configuration, tensor names, and who can load it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from ftproject.engine.adapter_import import inspect_adapter
from ftproject.engine.adapters import read_adapter_info
from ftproject.engine.configs import LoraSettings
from ftproject.engine.models import lora_target_regex
from tests.engine.conformance import unsloth_on_cpu
from tests.engine.conformance.conftest import Trained
from tests.engine.support import TINY

pytestmark = pytest.mark.slow
FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "processor_config.json",
    "provenance.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
# What PEFT writes besides: null, empty or its own default, whichever backend made the adapter.
SET = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny-qwen3-vl",
    "r": 16,
    "lora_alpha": 32,
    "bias": "none",
    "inference_mode": True,
    "init_lora_weights": True,
    "target_modules": lora_target_regex(LoraSettings()),
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}


def test_the_folder_holds_these_files_and_no_others(trained: Trained) -> None:
    names = {file.name for file in trained.path.iterdir()}
    assert names - {"video_preprocessor_config.json"} == FILES  # with torchvision it is part of processor_config.json


def test_the_configuration_is_the_same_to_the_key(trained: Trained) -> None:
    config = json.loads((trained.path / "adapter_config.json").read_text())
    version = config.pop("peft_version")
    assert version == json.loads((trained.path / "provenance.json").read_text())["versions"]["peft"]
    assert {key: value for key, value in config.items() if value} == SET
    assert config["auto_mapping"] is None


def test_every_module_has_its_two_matrices_under_pefts_names(trained: Trained) -> None:
    vision = [f"model.visual.blocks.{n}.{part}" for n in range(3) for part in ("attn.qkv", "attn.proj")]
    vision += [f"model.visual.blocks.{n}.mlp.linear_fc{part}" for n in range(3) for part in (1, 2)]
    language = [f"model.language_model.layers.{n}.self_attn.{part}_proj" for n in range(3) for part in "qkvo"]
    language += [
        f"model.language_model.layers.{n}.mlp.{part}_proj" for n in range(3) for part in ("gate", "up", "down")
    ]
    expected = {f"base_model.model.{name}.lora_{side}.weight" for name in vision + language for side in "AB"}
    with safe_open(str(trained.path / "adapter_model.safetensors"), framework="np") as file:
        assert set(file.keys()) == expected
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118


def test_it_names_the_base_and_no_path_of_this_machine(trained: Trained) -> None:
    assert read_adapter_info(trained.path).base_model_name == "tiny-qwen3-vl"
    for file in trained.path.glob("*.json"):
        text = file.read_text()
        assert TINY not in text, file.name
        assert str(trained.path.parent) not in text, file.name
        assert str(Path.home()) not in text, file.name


def test_it_would_be_accepted_from_a_stranger(trained: Trained) -> None:
    facts = inspect_adapter(trained.path, models_dir=trained.path.parent / "models")
    assert (facts.effective, facts.checked_against_base, facts.warnings) == (True, True, ())


STOCK = """
import sys, torch
from peft import PeftModel
from transformers import Qwen3VLForConditionalGeneration
base = Qwen3VLForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = torch.tensor([[2, 5, 7, 11]])
before = base(input_ids=ids).logits
tuned = PeftModel.from_pretrained(base, sys.argv[2])(input_ids=ids).logits
assert "ftproject" not in sys.modules and "unsloth" not in sys.modules
print(float((tuned - before).abs().max()))
"""


def test_stock_peft_loads_it_without_our_code(trained: Trained, tmp_path: Path) -> None:
    program = unsloth_on_cpu.DECLARATION + STOCK if unsloth_on_cpu.wanted() else STOCK
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:peft", "-c", program, TINY, str(trained.path)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=tmp_path,
        env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.strip().splitlines()[-1]) > 0.01


def test_provenance_says_what_ran(trained: Trained) -> None:
    provenance = read_adapter_info(trained.path).provenance
    assert provenance["backend"] == trained.subject.name
    assert provenance["device"] == ("cuda" if trained.subject.device.cuda else "cpu")
    assert provenance["adapter_effective"] is True
    assert provenance["seed"] == 5
    assert provenance["config"]["lora_config"]["lora_alpha"] == 32
    assert provenance["pixel_rule"] == {"min_pixels": 4096, "max_pixels": 4096}
    assert provenance["versions"].keys() >= {"torch", "transformers", "trl", "peft"}
