"""What a request becomes on this machine, decided without torch: model, precision, optimizer, backend."""

import os
from pathlib import Path
from typing import Any

import pytest

from ftproject.engine import device_rules
from ftproject.engine.configs import (
    GPU_MODEL_NAME,
    TINY_MODEL_NAME,
    TINY_MODEL_PATH,
    ConfigError,
    DeviceFacts,
    EffectiveConfig,
    choose_backend,
    parse_training_config,
    resolve_model,
    resolve_training_config,
)
from tests.engine.support import CPU, GPU, OLD_GPU


def resolve(body: dict[str, object], device: DeviceFacts, folder: Path) -> EffectiveConfig:
    return resolve_training_config(parse_training_config(body), device, models_dir=folder)


def error_of(name: str, device: DeviceFacts, folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolve_model(name, device, models_dir=folder)
    return caught.value


def test_without_cuda_the_default_is_the_bundled_tiny_model_in_float32(tmp_path: Path) -> None:
    effective = resolve({}, CPU, tmp_path)
    sft = effective.config.sft
    assert (effective.model_name, effective.model_path) == (TINY_MODEL_NAME, str(TINY_MODEL_PATH))
    assert (sft.bf16, sft.fp16, sft.optim) == (False, False, "adamw_torch")
    assert effective.backend == "transformers"
    assert effective.config.model.load_in_4bit is False
    assert sft.gradient_checkpointing is False
    assert len(effective.warnings) == 2
    assert "float32" in effective.warnings[0]
    assert "adamw_torch" in effective.warnings[1]


def test_with_cuda_the_default_is_the_documents_model_as_asked_for(tmp_path: Path) -> None:
    effective = resolve({}, GPU, tmp_path)
    assert effective.model_name == effective.model_path == GPU_MODEL_NAME
    assert effective.config.model.load_in_4bit is True
    assert effective.config.sft.gradient_checkpointing is True
    assert (effective.config.sft.bf16, effective.config.sft.optim) == (True, "adamw_8bit")
    assert effective.warnings == []


def test_a_gpu_without_bfloat16_trains_in_float16_and_says_so(tmp_path: Path) -> None:
    effective = resolve({}, OLD_GPU, tmp_path)
    assert (effective.config.sft.bf16, effective.config.sft.fp16) == (False, True)
    assert "Tesla T4" in effective.warnings[0]


def test_unsloth_trains_in_mixed_precision_whatever_is_asked_and_the_run_says_so(tmp_path: Path) -> None:
    asked = parse_training_config({"sft_config": {"bf16": False}})
    for device, expected in ((GPU, (True, False)), (OLD_GPU, (False, True))):
        effective = resolve_training_config(asked, device, models_dir=tmp_path, backend="unsloth")
        assert (effective.config.sft.bf16, effective.config.sft.fp16) == expected
        assert "mixed precision" in effective.warnings[-1]
        plain = resolve_training_config(asked, device, models_dir=tmp_path, backend="transformers")
        assert (plain.config.sft.bf16, plain.config.sft.fp16) == (False, False)
        assert plain.warnings == []


def test_fp16_and_four_bit_on_a_cpu_are_changed_or_warned_about(tmp_path: Path) -> None:
    body = {"model_config_data": {"load_in_4bit": True}, "sft_config": {"fp16": True, "optim": "adamw_torch"}}
    effective = resolve(body, CPU, tmp_path)
    assert effective.config.sft.fp16 is False
    assert effective.config.model.load_in_4bit is True
    assert [word for word in ("fp16", "load_in_4bit") if any(word in w for w in effective.warnings)] == [
        "fp16",
        "load_in_4bit",
    ]


def test_a_warm_up_longer_than_the_training_is_warned_about(tmp_path: Path) -> None:
    effective = resolve({"sft_config": {"max_steps": 5, "warmup_steps": 5}}, GPU, tmp_path)
    assert "never reaches its peak" in effective.warnings[0]


@pytest.mark.parametrize(("scheduler", "warmup", "said"), [("linear", 5, 1), ("linear", 4, 0), ("constant", 5, 0)])
def test_with_epochs_a_warm_up_is_compared_with_the_steps_of_the_run(scheduler: str, warmup: int, said: int) -> None:
    body = {"use_epochs": True, "lr_scheduler_type": scheduler, "warmup_steps": warmup}
    sft = parse_training_config({"sft_config": body}).sft
    assert len(device_rules.warm_up_warnings(sft, 5)) == said


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"sft_config": {"num_train_epochs": 3}}, "num_train_epochs 3 has no effect: use_epochs is false"),
        ({"sft_config": {"use_epochs": True, "max_steps": 60}}, "max_steps 60 has no effect: use_epochs is true"),
        ({"sft_config": {"lr_scheduler_type": "constant"}}, "warmup_steps 5 has no effect with lr_scheduler_type"),
        ({"holdout_seed": 7}, "holdout_seed 7 has no effect: holdout_fraction is 0"),
    ],
)
def test_a_setting_that_another_one_leaves_without_effect_is_said(
    body: dict[str, Any], words: str, tmp_path: Path
) -> None:
    assert [words in warning for warning in resolve(body, GPU, tmp_path).warnings] == [True]


@pytest.mark.parametrize(
    "body",
    [
        {"sft_config": {"use_epochs": True, "num_train_epochs": 3}},
        {"sft_config": {"max_steps": 60}},
        {"sft_config": {"lr_scheduler_type": "constant", "warmup_steps": 0}},
        {"sft_config": {"lr_scheduler_type": "constant_with_warmup"}},
        {"holdout_seed": 7, "holdout_fraction": 0.1},
    ],
)
def test_a_setting_that_has_its_effect_is_not_remarked_upon(body: dict[str, Any], tmp_path: Path) -> None:
    assert resolve(body, GPU, tmp_path).warnings == []


def test_the_constant_schedule_of_transformers_really_passes_the_warm_up_over() -> None:
    import torch
    from transformers import get_scheduler

    def first_rate(name: str) -> float:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return float(get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=10).get_last_lr()[0])

    assert (first_rate("constant"), first_rate("constant_with_warmup")) == (1.0, 0.0)


@pytest.mark.parametrize("asked", [None, False, True])
def test_a_base_whose_weights_are_stored_in_four_bit_is_never_said_to_be_loaded_otherwise(
    asked: bool | None, tmp_path: Path
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}'
    )
    for name in ("small", GPU_MODEL_NAME):
        body: dict[str, Any] = {"model_config_data": {"model_name": name, "load_in_4bit": asked}}
        effective = resolve(body, GPU, tmp_path)
        assert effective.config.model.load_in_4bit is True
        said = ["stored in 4 bit" in warning for warning in effective.warnings]
        assert said == ([True] if asked is False else [])


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"quantization_config": null}', '{"quantization_config": {}}'])
def test_a_base_of_another_precision_is_loaded_as_asked(config: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text(config)
    for asked in (False, True):
        body: dict[str, Any] = {"model_config_data": {"model_name": "plain", "load_in_4bit": asked}}
        assert resolve(body, GPU, tmp_path).config.model.load_in_4bit is asked


@pytest.mark.parametrize(
    ("steps", "apart"), [(1, 10), (30, 10), (100, 10), (101, 11), (300, 30), (2500, 250), (10_000_000, 250)]
)
def test_checkpoints_come_every_tenth_of_the_run_unless_asked_for_otherwise(
    steps: int, apart: int, tmp_path: Path
) -> None:
    assert resolve({"sft_config": {"max_steps": steps}}, CPU, tmp_path).config.sft.save_steps == apart
    assert resolve({"sft_config": {"max_steps": steps, "save_steps": 7}}, CPU, tmp_path).config.sft.save_steps == 7


def test_with_epochs_the_interval_of_checkpoints_waits_for_the_rows(tmp_path: Path) -> None:
    assert resolve({"sft_config": {"use_epochs": True}}, CPU, tmp_path).config.sft.save_steps is None


def test_batches_are_prepared_by_processes_on_cuda_only(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert resolve({}, CPU, tmp_path).config.sft.dataloader_num_workers == 0
    assert resolve({}, GPU, tmp_path).config.sft.dataloader_num_workers == min(4, cores - 1)
    assert resolve({"sft_config": {"dataloader_num_workers": 0}}, GPU, tmp_path).config.sft.dataloader_num_workers == 0


def test_without_shared_memory_no_process_prepares_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_rules, "SHARED_MEMORY", tmp_path / "absent")
    assert resolve({}, GPU, tmp_path).config.sft.dataloader_num_workers == 0


def test_a_resolved_configuration_resolves_to_itself(tmp_path: Path) -> None:
    once = resolve({"sft_config": {"max_seq_length": 300}}, CPU, tmp_path)
    twice = resolve_training_config(once.config, CPU, models_dir=tmp_path)
    assert twice.config == once.config
    assert twice.warnings == []


@pytest.mark.parametrize("name", [GPU_MODEL_NAME, "Qwen/Qwen3-VL-2B-Instruct"])
def test_a_hub_model_without_cuda_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    error = error_of(name, CPU, tmp_path)
    assert error.code == "model_needs_gpu"
    assert error.hint == "omit model_name or use tiny-qwen3-vl"
    assert error.problems[0].field == "model_config_data.model_name"


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3",
        "evil/Qwen3-VL-8B",
        "Qwen/Qwen3-VL-2B/../../etc",
        "../secret",
        "..",
        ".",
        "/etc",
        "a\0b",
        "x" * 4000,
        "tiny-qwen3-vl/",
        "UNSLOTH/Qwen3-VL-8B",
    ],
)
def test_a_name_off_the_allow_list_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path.parent / "secret").mkdir(exist_ok=True)
    assert error_of(name, GPU, tmp_path).code == "model_not_allowed"


def test_a_folder_directly_under_the_models_directory_is_allowed_by_name_or_path(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "mine" / "inner").mkdir(parents=True)
    assert resolve_model("mine", CPU, models_dir=models) == ("mine", str(models / "mine"))
    assert resolve_model(str(models / "mine"), CPU, models_dir=models)[0] == "mine"
    assert error_of("mine/inner", CPU, models).code == "model_not_allowed"


def test_a_link_out_of_the_models_directory_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (tmp_path / "outside").mkdir()
    (models / "link").symlink_to(tmp_path / "outside")
    assert error_of("link", CPU, models).code == "model_not_allowed"


def test_a_configured_default_model_is_taken_when_none_is_named(tmp_path: Path) -> None:
    name, _ = resolve_model(None, GPU, default_model="Qwen/Qwen3-VL-4B-Instruct", models_dir=tmp_path)
    assert name == "Qwen/Qwen3-VL-4B-Instruct"


def test_auto_takes_unsloth_only_on_cuda_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "unsloth" else None)
    assert choose_backend("auto", GPU, GPU_MODEL_NAME) == "unsloth"
    assert choose_backend("auto", GPU, TINY_MODEL_NAME) == "transformers"
    assert choose_backend("auto", CPU, GPU_MODEL_NAME) == "transformers"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_backend("auto", GPU, GPU_MODEL_NAME) == "transformers"
    assert choose_backend("fake", CPU, TINY_MODEL_NAME) == "fake"
