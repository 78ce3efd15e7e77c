"""Adapters of other origin: what is taken over, and everything that is refused before it is."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ftproject.engine.adapter_import import AdapterFacts, find_adapter_folder, import_adapter, inspect_adapter
from ftproject.engine.adapters import AdapterError, read_adapter_info
from ftproject.engine.configs import GPU_MODEL_NAME, TINY_MODEL_PATH
from ftproject.engine.processors import PixelRule
from ftproject.engine.tensor_files import folder_entries, weight_shapes

R = 4
PREFIX = "base_model.model."
VISION = "model.visual.blocks.0.attn.qkv"
LANGUAGE = "model.language_model.layers.0.self_attn.q_proj"
# As PEFT 0.21 and Unsloth 2026.10 write it, with another machine's path.
CONFIG = {
    "peft_type": "LORA",
    "r": R,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "bias": "none",
    "base_model_name_or_path": "tiny-qwen3-vl",
    "auto_mapping": {
        "base_model_class": "Qwen3VLForConditionalGeneration",
        "parent_library": "transformers.models.qwen3_vl.modeling_qwen3_vl",
        "unsloth_fixed": True,
    },
    "target_modules": "(?:.*?(?:vision|language).*?(?:qkv|q_proj).*?)",
    "modules_to_save": None,
    "rank_pattern": {},
    "task_type": "CAUSAL_LM",
}


def matrices(*modules: str, dtype: str = "<f4", fill: float = 0.25) -> dict[str, Any]:
    """Random A and constant B matrices that fit the tiny model."""
    shapes = weight_shapes(folder_entries(TINY_MODEL_PATH))
    random = np.random.default_rng(0)
    tensors = {}
    for module in modules:
        out_size, in_size = shapes.get(f"{module}.weight", (8, 8))
        tensors[f"{PREFIX}{module}.lora_A.weight"] = random.normal(size=(R, in_size)).astype(dtype)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.full((out_size, R), fill, dtype)
    return tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "upload"
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file(matrices(VISION, LANGUAGE), str(path / "adapter_model.safetensors"))
    return path


def inspect(folder: Path, **options: Any) -> AdapterFacts:
    return inspect_adapter(folder, models_dir=folder.parent / "models", **options)


def refusal(folder: Path, **options: Any) -> tuple[str, str]:
    with pytest.raises(AdapterError) as caught:
        inspect(folder, **options)
    assert str(folder.parent) not in caught.value.message
    return caught.value.code, caught.value.message


def set_config(folder: Path, **changes: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))


def set_weights(folder: Path, tensors: dict[str, Any]) -> None:
    save_file(tensors, str(folder / "adapter_model.safetensors"))


def test_a_plain_adapter_is_described(folder: Path) -> None:
    facts = inspect(folder)
    assert (facts.base_model_name, facts.r, facts.lora_alpha, facts.dtype) == ("tiny-qwen3-vl", R, 8.0, "F32")
    assert facts.modules == (LANGUAGE, VISION)
    assert facts.parts == ("vision", "language")
    assert facts.parameters == sum(value.size for value in matrices(VISION, LANGUAGE).values())
    assert facts.effective is True
    assert facts.checked_against_base is True
    assert len(facts.sha256) == 64
    assert facts.warnings == ("nothing says how large images were in its training; the base's own rule is used",)


def test_an_adapter_of_the_vision_tower_alone_is_welcome(folder: Path) -> None:
    set_weights(folder, matrices(VISION))
    assert inspect(folder).parts == ("vision",)


def test_what_is_taken_over_is_read_back_and_holds_nothing_foreign(folder: Path, tmp_path: Path) -> None:
    (folder / "provenance.json").write_text(
        '{"pixel_rule": {"min_pixels": 4096, "max_pixels": 16384}, "adapter_effective": false, "seed": 5}'
    )
    (folder / "README.md").write_text("<script>")
    (folder / "tokenizer.json").write_text("{}")
    set_config(folder, base_model_name_or_path="tiny-qwen3-vl", revision="main")
    facts = inspect(folder)
    target = tmp_path / "adapters" / "imported"
    import_adapter(facts, target, provenance={"original_filename": "x.zip"})
    assert {file.name for file in target.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "provenance.json",
    }
    info = read_adapter_info(target)
    assert (info.base_model_name, info.r, info.lora_alpha) == ("tiny-qwen3-vl", R, 8)
    assert info.pixel_rule == PixelRule(4096, 16384)
    assert info.provenance["adapter_effective"] is True
    assert info.provenance["claimed"]["provenance"]["seed"] == 5
    assert info.provenance["original_filename"] == "x.zip"
    config = json.loads((target / "adapter_config.json").read_text())
    assert config["target_modules"] == [LANGUAGE, VISION]
    assert "auto_mapping" not in config
    with pytest.raises(AdapterError, match="exists already"):
        import_adapter(facts, target)


@pytest.mark.slow
def test_peft_loads_exactly_the_imported_tensors(folder: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel, get_peft_model_state_dict

    from ftproject.engine.models import load_base_model

    target = tmp_path / "adapters" / "imported"
    import_adapter(inspect(folder), target)
    model = PeftModel.from_pretrained(load_base_model(str(TINY_MODEL_PATH), device="cpu"), str(target))
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = load_file(str(folder / "adapter_model.safetensors"))
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], torch.from_numpy(value)) for name, value in expected.items())


@pytest.mark.slow
def test_an_adapter_of_our_own_comes_back_as_it_was(trained: Any, tmp_path: Path) -> None:
    facts = inspect_adapter(trained.path, models_dir=tmp_path)
    assert len(facts.modules) == 33
    assert facts.effective
    assert facts.pixel_rule == read_adapter_info(trained.path).pixel_rule
    assert facts.warnings == ()


def test_a_base_named_by_another_machines_path_can_be_named_by_the_user(folder: Path) -> None:
    set_config(folder, base_model_name_or_path="/home/you/models/qwen")
    code, message = refusal(folder)
    assert code == "adapter_base_not_allowed"
    assert "base_model_name" in message
    facts = inspect(folder, base_model_name="tiny-qwen3-vl")
    assert facts.base_model_name == "tiny-qwen3-vl"
    assert any("/home/you/models/qwen" in warning for warning in facts.warnings)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3", "../../etc", "", None, 7, "Qwen/Qwen3-VL-8B/../x", "a\0b"])
def test_a_base_that_is_not_on_the_allow_list_is_refused(folder: Path, name: Any) -> None:
    set_config(folder, base_model_name_or_path=name)
    assert refusal(folder)[0] == "adapter_base_not_allowed"


def test_a_hub_base_that_is_not_here_is_checked_by_names_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_config(folder, base_model_name_or_path=GPU_MODEL_NAME)
    facts = inspect(folder)
    assert facts.checked_against_base is False
    assert any("were not compared" in warning for warning in facts.warnings)


def test_a_local_base_is_compared_by_shape(folder: Path) -> None:
    models = folder.parent / "models"
    shutil.copytree(TINY_MODEL_PATH, models / "mine")
    set_config(folder, base_model_name_or_path="mine")
    assert inspect(folder).checked_against_base is True
    tensors = matrices(VISION)
    tensors[f"{PREFIX}{VISION}.lora_A.weight"] = np.zeros((R, 7), "<f4")
    set_weights(folder, tensors)
    code, message = refusal(folder)
    assert (code, "[288, 96]" in message) == ("adapter_mismatch", True)


@pytest.mark.parametrize(
    "module",
    [
        "model.layers.0.self_attn.q_proj",  # AutoModelForCausalLM
        "visual.blocks.0.attn.qkv",  # Qwen2-VL of transformers 4
        "language_model.layers.0.self_attn.q_proj",
        "model.language_model.embed_tokens",
        "model.language_model.layers.999.self_attn.q_proj",
        "lm_head",
    ],
)
def test_keys_of_another_model_class_are_refused_because_they_would_do_nothing(folder: Path, module: str) -> None:
    set_weights(folder, matrices(module))
    assert refusal(folder)[0] == "adapter_mismatch"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_a_value_that_is_not_finite_is_refused(folder: Path, value: float, dtype: str) -> None:
    tensors = matrices(VISION, dtype=dtype)
    tensors[f"{PREFIX}{VISION}.lora_B.weight"][-1, -1] = value
    set_weights(folder, tensors)
    assert refusal(folder)[0] == "adapter_not_finite"


def bfloat16(folder: Path, patterns: dict[str, list[int]]) -> None:
    """Writes one vision module in bfloat16 by bit pattern, every other value 1.0."""
    header: dict[str, Any] = {}
    body = b""
    for name, value in matrices(VISION).items():
        bits = np.full(value.size, 0x3F80, "<u2")
        pattern = patterns.get(name.split(".")[-2], [])
        bits[: len(pattern)] = pattern
        if len(pattern) == 1:
            bits[:] = pattern[0]
        header[name] = {
            "dtype": "BF16",
            "shape": list(value.shape),
            "data_offsets": [len(body), len(body) + bits.nbytes],
        }
        body += bits.tobytes()
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0, 0x7F81])
def test_bfloat16_infinities_and_nans_are_seen(folder: Path, bits: int) -> None:
    bfloat16(folder, {"lora_A": [0x3F80, bits]})
    assert refusal(folder)[0] == "adapter_not_finite"


def test_bfloat16_zeros_of_either_sign_do_nothing(folder: Path) -> None:
    bfloat16(folder, {})
    assert inspect(folder).effective is True
    for zero in (0x0000, 0x8000):
        bfloat16(folder, {"lora_B": [zero]})
        facts = inspect(folder)
        assert facts.effective is False
        assert "does nothing" in " ".join(facts.warnings)


def test_an_untrained_adapter_is_called_ineffective(folder: Path) -> None:
    set_weights(folder, matrices(VISION, LANGUAGE, fill=0.0))
    assert inspect(folder).effective is False


@pytest.mark.parametrize(
    "change",
    [
        {"modules_to_save": ["lm_head"]},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"rank_pattern": {"q_proj": 8}},
        {"layer_replication": [[0, 4]]},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["x"]},
        {"init_lora_weights": "pissa"},
        {"a_setting_of_tomorrow": {"a": 1}},
    ],
)
def test_anything_but_plain_lora_is_refused_by_name(folder: Path, change: dict[str, Any]) -> None:
    set_config(folder, **change)
    code, message = refusal(folder)
    assert (code, next(iter(change)).split("_")[0] in message) == ("adapter_not_supported", True)


@pytest.mark.parametrize(
    "mapping",
    [
        {"base_model_class": "Qwen3VLForConditionalGeneration", "parent_library": "evil.module"},
        {"base_model_class": "AutoModelForCausalLM", "parent_library": "transformers.models.auto"},
        {"parent_library": "transformersevil"},
    ],
)
def test_a_mapping_that_makes_peft_import_something_else_is_refused(folder: Path, mapping: dict[str, str]) -> None:
    set_config(folder, auto_mapping=mapping)
    assert refusal(folder)[0] == "adapter_holds_code"


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"r": 0},
        {"r": True},
        {"r": "16"},
        {"r": 4096},
        {"lora_alpha": 0},
        {"lora_alpha": None},
        {"lora_dropout": "a"},
        {"auto_mapping": "x"},
    ],
)
def test_settings_that_make_no_sense_are_refused(folder: Path, change: dict[str, Any]) -> None:
    set_config(folder, **change)
    assert refusal(folder)[0] == "adapter_config_invalid"


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", '{"peft_type": "LORA", "r": NaN}', " " * (2**20 + 1)])
def test_a_config_that_is_no_sane_json_is_refused(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text(text)
    assert refusal(folder)[0] == "adapter_config_invalid"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("adapter_model.bin", "adapter_not_safetensors"),
        ("optimizer.PT", "adapter_not_safetensors"),
        ("deep/scheduler.pkl", "adapter_not_safetensors"),
        ("modeling.py", "adapter_holds_code"),
    ],
)
def test_pickles_and_code_are_refused_wherever_they_lie(folder: Path, name: str, code: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    found, message = refusal(folder)
    assert (found, Path(name).name in message) == (code, True)


def test_links_and_pipes_are_refused(folder: Path) -> None:
    (folder / "link.json").symlink_to("/etc/passwd")
    assert refusal(folder)[0] == "adapter_holds_code"
    (folder / "link.json").unlink()
    os.mkfifo(folder / "pipe")
    assert refusal(folder)[0] == "adapter_holds_code"


def test_weights_behind_a_link_are_not_followed(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.rename(folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")
    assert refusal(folder)[0] == "adapter_holds_code"


@pytest.mark.parametrize("damage", ["cut", "longer", "text", "empty"])
def test_damaged_weights_are_refused(folder: Path, damage: str) -> None:
    file = folder / "adapter_model.safetensors"
    data = file.read_bytes()
    file.write_bytes({"cut": data[:-1], "longer": data + b"x", "text": b"hello" * 9, "empty": b""}[damage])
    assert refusal(folder)[0] == "adapter_unreadable"


def drop_b(tensors: dict[str, Any]) -> None:
    del tensors[f"{PREFIX}{VISION}.lora_B.weight"]


def other_rank(tensors: dict[str, Any]) -> None:
    tensors[f"{PREFIX}{VISION}.lora_A.weight"] = np.zeros((R + 1, 96), "<f4")


def both_other_rank(tensors: dict[str, Any]) -> None:
    other_rank(tensors)
    tensors[f"{PREFIX}{VISION}.lora_B.weight"] = np.zeros((288, R + 1), "<f4")


def whole_numbers(tensors: dict[str, Any]) -> None:
    tensors[f"{PREFIX}{VISION}.lora_A.weight"] = np.zeros((R, 96), "<i4")


def three_dimensions(tensors: dict[str, Any]) -> None:
    tensors[f"{PREFIX}{VISION}.lora_A.weight"] = np.zeros((1, R, 96), "<f4")


def a_bias(tensors: dict[str, Any]) -> None:
    tensors[f"{PREFIX}{VISION}.bias"] = np.zeros(3, "<f4")


def a_named_adapter(tensors: dict[str, Any]) -> None:
    tensors[f"{PREFIX}{VISION}.lora_A.default.weight"] = tensors.pop(f"{PREFIX}{VISION}.lora_A.weight")


def nothing(tensors: dict[str, Any]) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    "change", [drop_b, other_rank, both_other_rank, whole_numbers, three_dimensions, a_bias, a_named_adapter, nothing]
)
def test_tensors_that_are_no_complete_lora_are_refused(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = matrices(VISION, LANGUAGE)
    change(tensors)
    set_weights(folder, tensors)
    assert refusal(folder)[0] == "adapter_mismatch"


def test_size_is_limited(folder: Path) -> None:
    assert refusal(folder, largest_bytes=100)[0] == "adapter_too_large"
    for number in range(200):
        (folder / f"{number}.txt").write_text("")
    assert refusal(folder)[0] == "adapter_too_large"


def test_half_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    assert refusal(folder)[0] == "adapter_incomplete"


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("provenance.json", '{"pixel_rule": {"min_pixels": 4096, "max_pixels": 8192}}', PixelRule(4096, 8192)),
        (
            "preprocessor_config.json",
            '{"size": {"shortest_edge": 65536, "longest_edge": 99999}}',
            PixelRule(65536, 99999),
        ),
        ("processor_config.json", '{"image_processor": {"min_pixels": 10, "max_pixels": 20}}', PixelRule(10, 20)),
        ("provenance.json", '{"pixel_rule": {"min_pixels": 9, "max_pixels": 8}}', None),
        ("provenance.json", '{"pixel_rule": {"min_pixels": "x", "max_pixels": 8}}', None),
        ("provenance.json", '{"pixel_rule": [1]}', None),
        ("provenance.json", "[1]", None),
        ("preprocessor_config.json", '{"size": "x"}', None),
        ("preprocessor_config.json", '{"size": {"shortest_edge": 1, "longest_edge": Infinity}}', None),
    ],
)
def test_the_pixel_rule_of_its_training_is_found_or_said_to_be_missing(
    folder: Path, name: str, content: str, rule: PixelRule | None
) -> None:
    (folder / name).write_text(content)
    facts = inspect(folder)
    assert facts.pixel_rule == rule
    assert (rule is None) == any("base's own rule" in warning for warning in facts.warnings)


def test_the_adapter_is_found_in_the_folder_of_an_archive(folder: Path, tmp_path: Path) -> None:
    assert find_adapter_folder(folder) == folder
    assert find_adapter_folder(tmp_path) == folder
    shutil.copytree(folder, tmp_path / "second")
    with pytest.raises(AdapterError, match="2 adapters"):
        find_adapter_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="no adapter_config"):
        find_adapter_folder(tmp_path / "empty")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*CONFIG, "use_rslora", "init_lora_weights", "revision"]), value=JSON)
def test_whatever_stands_in_a_setting_it_is_taken_or_refused(folder: Path, name: str, value: Any) -> None:
    set_config(folder, **{name: value})
    try:
        facts = inspect(folder)
    except AdapterError:
        return
    json.dumps(import_config(facts), allow_nan=False)


def import_config(facts: AdapterFacts) -> dict[str, Any]:
    target = facts.folder.parent / "adapters" / "imported"
    shutil.rmtree(target, ignore_errors=True)
    import_adapter(facts, target)
    config: dict[str, Any] = json.loads((target / "adapter_config.json").read_text())
    return config
