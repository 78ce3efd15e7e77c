"""Checks and loads base models: safetensors only, no remote code, one concrete class per model type."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.engine.backends.base import EngineError
from ftproject.engine.configs import LoraSettings
from ftproject.engine.lean_imports import lean_imports
from ftproject.engine.vision_tower import quicken_vision_tower

MODEL_CLASSES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# What Unsloth leaves unquantised on this family: the vision tower and the output layer.
UNQUANTISED_MODULES = ["model.visual", "lm_head"]


class ModelError(EngineError):
    """A base model that cannot or may not be loaded."""


@dataclass(frozen=True)
class ModelFacts:
    """What config.json says about a base model."""

    model_type: str
    quantised: bool


def check_model_folder(path: Path) -> ModelFacts:
    """Refuses a folder that is no plain Qwen3-VL in safetensors; torch is not imported.

    Raises ModelError: model_not_found, model_config_invalid, model_type_not_supported, model_remote_code,
    model_not_safetensors.
    """
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ModelError("model_not_found", f"{path.name} has no config.json")
    facts = check_model_config(config_file)
    names = [entry.name for entry in path.iterdir()]
    if any(name.endswith(PICKLES) for name in names):
        raise ModelError("model_not_safetensors", f"{path.name} holds pickle files; only safetensors are loaded")
    if not any(name.endswith(".safetensors") for name in names):
        raise ModelError("model_not_safetensors", f"{path.name} has no .safetensors weights")
    return facts


def check_model_config(config_file: Path) -> ModelFacts:
    """The facts of a config.json; raises ModelError for another model type or a request for remote code."""
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        model_type = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError("model_config_invalid", f"config.json cannot be read: {error}") from error
    if model_type not in MODEL_CLASSES:
        known = " or ".join(MODEL_CLASSES)
        raise ModelError("model_type_not_supported", f"model_type is {model_type!r}, not {known}")
    if _asks_for_remote_code(config):
        raise ModelError("model_remote_code", "config.json asks for remote code (auto_map)")
    return ModelFacts(model_type, "quantization_config" in config)


def _asks_for_remote_code(value: object) -> bool:
    # In nested parts too: CVE-2026-5241 re-enabled remote code through one.
    if isinstance(value, dict):
        return "auto_map" in value or any(_asks_for_remote_code(part) for part in value.values())
    return isinstance(value, list) and any(_asks_for_remote_code(part) for part in value)


def model_facts(path: str) -> ModelFacts:
    """The checked facts of a folder, or of a hub model whose config.json is fetched first."""
    if os.path.isdir(path):
        return check_model_folder(Path(path))
    from huggingface_hub import hf_hub_download

    try:
        # Names come from the allow list, and what comes is checked; no revision is pinned (docs/threat-model.md).
        config_file = hf_hub_download(path, "config.json")  # nosec B615
    except Exception as error:  # no network, gated, missing: huggingface_hub has a dozen kinds
        raise ModelError("model_not_reachable", f"{path} cannot be fetched: {error}") from error
    return check_model_config(Path(config_file))


def local_model_folder(path: str, *, download: bool) -> Path | None:
    """The folder with the files of a model: itself, or the hub cache's; None when it is not on this machine.

    With `download`, a hub model is fetched first (only files that may be loaded: no pickle, no code).
    Raises ModelError as model_facts does.
    """
    if os.path.isdir(path):
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt"]
    try:
        if download:
            model_facts(path)
        return Path(snapshot_download(path, allow_patterns=patterns, local_files_only=not download))  # nosec B615
    except LocalEntryNotFoundError:
        return None
    except ModelError:
        raise
    except Exception as error:  # as in model_facts
        raise ModelError("model_not_reachable", f"{path} cannot be fetched: {error}") from error


def choose_dtype(device: str, *, bf16: bool) -> Any:
    """float32 on CPU (half precision is slower there); bfloat16 on CUDA where it exists, else float16."""
    import torch

    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if bf16 else torch.float16


def torch_device() -> str:
    """`cuda` where torch can use one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def limit_cpu_threads() -> None:
    """One computing thread without CUDA, or QWEN3VL_CPU_THREADS.

    On a busy two-core machine two OpenMP threads were 8 to 10 times slower than one (measured).
    """
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, int(os.environ.get("QWEN3VL_CPU_THREADS") or 1)))


def training_dtype(device: str, *, bf16: bool, fp16: bool) -> Any:
    """The precision of a base under the mixed precision that a run trains in; float32 without any."""
    import torch

    if device == "cpu" or not (bf16 or fp16):
        return torch.float32
    return torch.bfloat16 if bf16 else torch.float16


def load_base_model(path: str, *, device: str, load_in_4bit: bool = False, dtype: Any = None) -> Any:
    """The base model in evaluation mode on `device`; raises ModelError as model_facts does.

    `dtype` null takes what the device answers best in. What is quantised keeps its 4 bits, its computing has the dtype.
    """
    import torch

    facts = model_facts(path)
    limit_cpu_threads()
    if dtype is None:
        # Emulated bfloat16 (before Ampere) is far slower than float16.
        bf16 = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = choose_dtype(device, bf16=bf16)
    options: dict[str, Any] = {}
    if load_in_4bit and not facts.quantised:
        options["quantization_config"] = _four_bit_config(dtype)
    quantised = facts.quantised or load_in_4bit
    with lean_imports():
        import transformers

        model_class = getattr(transformers, MODEL_CLASSES[facts.model_type])
    model = model_class.from_pretrained(
        path,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        device_map={"": device} if quantised else None,
        **options,
    )
    quicken_vision_tower(model)
    return (model if quantised else model.to(device)).eval()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that device or machine memory ran out; the CPU allocator has no type of its own."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def use_one_gpu() -> None:
    """Shows torch one GPU only, unless a launcher started several processes; call before torch touches CUDA.

    With several visible, Trainer would take nn.DataParallel, which TRL refuses.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "WORLD_SIZE" not in os.environ and visible != "":
        os.environ["CUDA_VISIBLE_DEVICES"] = (visible or "0").split(",")[0]


def _four_bit_config(dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=UNQUANTISED_MODULES,
    )


def lora_target_regex(lora: LoraSettings) -> str:
    """The modules that get an adapter for the four flags: the same set as Unsloth's get_peft_regex chooses.

    The merger of the vision tower and the output layer get none (PEFT's "all-linear" would add the mergers).
    Raises ValueError when the flags leave nothing.
    """
    parts = []
    if lora.finetune_vision_layers and lora.finetune_attention_modules:
        parts.append(r".*\bvisual\.blocks\.\d+\.attn\.(?:qkv|proj)")
    if lora.finetune_vision_layers and lora.finetune_mlp_modules:
        parts.append(r".*\bvisual\.blocks\.\d+\.mlp\.(?:linear_fc1|linear_fc2)")
    if lora.finetune_language_layers and lora.finetune_attention_modules:
        parts.append(r".*\blanguage_model\.layers\.\d+\.self_attn\.(?:q|k|v|o)_proj")
    if lora.finetune_language_layers and lora.finetune_mlp_modules:
        parts.append(r".*\blanguage_model\.layers\.\d+\.mlp\.(?:gate|up|down)_proj")
    if not parts:
        raise ValueError("the finetune flags leave no module to train")
    return "|".join(f"(?:{part})" for part in parts)
