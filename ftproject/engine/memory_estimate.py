"""Estimates what a training run will take in memory and on disk from the model's files, term by term, without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.engine.hyperparameters import LoraSettings, TrainingConfig
from ftproject.engine.token_counts import TokenCountError, model_file, read_model_json

MIB = 2**20
# Bytes an optimizer keeps for each trained parameter: two float32 moments, two 8-bit ones, factored ones, none.
OPTIMIZER_BYTES = {
    "adamw_8bit": 2.0,
    "adamw_bnb_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "paged_adamw_32bit": 8.0,
    "adafactor": 4.0,
    "sgd": 0.0,
}
FOUR_BIT_BYTES = 0.52  # nf4 with double quantisation: 4 bits, a scale for 64 weights, itself in 8 bits
ADAPTER_BYTES = 4  # PEFT keeps adapter weights in float32
# Peak of a run of the tiny model, 770 MB, less its other terms (measured); importing torch, transformers, trl: 561.
RUNTIME_CPU_MB = 740
RUNTIME_CUDA_MB = 600  # CUDA context and library workspaces; not measured here


@dataclass(frozen=True)
class Term:
    """One part of an estimate, in MiB, with the formula it came from."""

    name: str
    mb: float
    how: str


@dataclass(frozen=True)
class ModelShape:
    """The sizes of config.json that decide memory: language model and vision tower."""

    hidden: int
    layers: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    vision_intermediate: int
    quantised: bool


def read_model_shape(model_path: str) -> ModelShape:
    """The shape of a dense Qwen3-VL from its config.json; raises TokenCountError where that cannot be known."""
    config = read_model_json(model_path, "config.json", required=True)
    if config.get("model_type") != "qwen3_vl":
        message = f"memory is estimated for dense models only, not for {config.get('model_type')!r}"
        raise TokenCountError("model_not_estimated", message)
    try:
        text, vision = config["text_config"], config["vision_config"]
        heads = int(text["num_attention_heads"])
        head = int(text.get("head_dim") or text["hidden_size"] // heads)
        return ModelShape(
            hidden=int(text["hidden_size"]),
            layers=int(text["num_hidden_layers"]),
            intermediate=int(text["intermediate_size"]),
            queries=heads * head,
            keys=int(text["num_key_value_heads"]) * head,
            vocabulary=int(text["vocab_size"]),
            vision_hidden=int(vision["hidden_size"]),
            vision_layers=int(vision["depth"]),
            vision_intermediate=int(vision["intermediate_size"]),
            quantised="quantization_config" in config,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise TokenCountError("model_files_invalid", f"config.json does not say {error}") from error


def lora_parameters(shape: ModelShape, lora: LoraSettings) -> int:
    """Parameters of the adapter on the modules of `models.lora_target_regex`: r x (in + out) each."""
    wide = 0
    if lora.finetune_language_layers and lora.finetune_attention_modules:
        wide += shape.layers * (4 * shape.hidden + 2 * shape.queries + 2 * shape.keys)
    if lora.finetune_language_layers and lora.finetune_mlp_modules:
        wide += shape.layers * 3 * (shape.hidden + shape.intermediate)
    if lora.finetune_vision_layers and lora.finetune_attention_modules:
        wide += shape.vision_layers * (4 * shape.vision_hidden + 2 * shape.vision_hidden)
    if lora.finetune_vision_layers and lora.finetune_mlp_modules:
        wide += shape.vision_layers * 2 * (shape.vision_hidden + shape.vision_intermediate)
    return lora.r * wide


def estimate_memory(
    model_path: str, config: TrainingConfig, *, cuda: bool, longest: int, longest_vision: int
) -> list[Term]:
    """What training takes at its peak: weights, adapter, gradients, optimizer, activations, logits, runtime.

    `longest` and `longest_vision` are the tokens and image tokens of the longest row that is trained on; a batch is
    padded to its longest row. Attention is counted as memory-efficient (no score matrices). Good to about a
    third. Raises TokenCountError when files of the model are not on this disk.
    """
    shape = read_model_shape(model_path)
    adapter = lora_parameters(shape, config.lora)
    width = 2 if cuda and (config.sft.bf16 or config.sft.fp16) else 4
    rows = config.sft.per_device_train_batch_size
    state = OPTIMIZER_BYTES[config.sft.optim]
    runtime = RUNTIME_CUDA_MB if cuda else RUNTIME_CPU_MB
    return [
        _weights(model_path, config, cuda=cuda, quantised=shape.quantised),
        Term("adapter", adapter * ADAPTER_BYTES / MIB, f"{adapter} LoRA parameters x {ADAPTER_BYTES} bytes"),
        Term("gradients", adapter * ADAPTER_BYTES / MIB, f"{adapter} LoRA parameters x {ADAPTER_BYTES} bytes"),
        Term("optimizer", adapter * state / MIB, f"{adapter} LoRA parameters x {state:g} bytes ({config.sft.optim})"),
        _activations(shape, config, tokens=rows * longest, patches=4 * rows * longest_vision, width=width),
        Term(
            "logits",
            rows * longest * shape.vocabulary * 4 * 2 / MIB,
            f"{rows} rows x {longest} tokens x {shape.vocabulary} words x 4 bytes, and as much for their gradient",
        ),
        Term("runtime", runtime, "the process with its libraries"),
    ]


def _weights(model_path: str, config: TrainingConfig, *, cuda: bool, quantised: bool) -> Term:
    sizes = weight_sizes(model_path)
    if quantised:
        stored = sum(size for size, _ in sizes.values())
        return Term("weights", stored / MIB, "the bytes of the quantised .safetensors files")
    count = sum(parameters for _, parameters in sizes.values())
    if config.model.load_in_4bit:
        # The vision tower and the output layer stay as they are (models.UNQUANTISED_MODULES), embeddings too.
        packed = sum(n for name, (_, n) in sizes.items() if ".layers." in name and "visual" not in name)
        size = packed * FOUR_BIT_BYTES + (count - packed) * 2
        return Term("weights", size / MIB, f"{packed} parameters x {FOUR_BIT_BYTES} bytes, {count - packed} x 2 bytes")
    width = 2 if cuda else 4
    return Term("weights", count * width / MIB, f"{count} parameters x {width} bytes")


def _activations(shape: ModelShape, config: TrainingConfig, *, tokens: int, patches: int, width: int) -> Term:
    """What one forward pass keeps for the backward one: the input of each linear layer, norm and activation.

    After Korthikanti et al. 2022 (arXiv:2205.05198), section 4, written out for Qwen3's gated layers and grouped keys.
    """
    layer = tokens * (5 * shape.hidden + 3 * shape.queries + 4 * shape.keys + 4 * shape.intermediate)
    block = patches * (11 * shape.vision_hidden + 3 * shape.vision_intermediate)
    if config.sft.gradient_checkpointing:
        kept = tokens * shape.hidden * shape.layers + patches * shape.vision_hidden * shape.vision_layers
        kept += max(layer, block)
        how = "the input of each layer and all of one layer (gradient checkpointing)"
    else:
        kept = layer * shape.layers + block * shape.vision_layers
        how = "the inputs of all modules of all layers"
    return Term("activations", kept * width / MIB, f"{how}, {tokens} tokens and {patches} patches x {width} bytes")


def adapter_disk_mb(model_path: str, config: TrainingConfig) -> float:
    """What an adapter and the checkpoints of its run take on disk in MiB; raises TokenCountError."""
    parameters = lora_parameters(read_model_shape(model_path), config.lora)
    adapter = parameters * ADAPTER_BYTES
    checkpoint = adapter + parameters * OPTIMIZER_BYTES[config.sft.optim]
    # One more than are kept: the old one goes after the new one is there.
    checkpoints = config.sft.save_total_limit + 1
    tokenizer = model_file(model_path, "tokenizer.json")
    beside = tokenizer.stat().st_size if tokenizer else 0
    return (adapter + checkpoint * checkpoints + beside * (checkpoints + 1)) / MIB


def weight_sizes(model_path: str) -> dict[str, tuple[int, int]]:
    """Bytes and number of parameters of each tensor, from the heads of the .safetensors files.

    Format: 8 bytes little-endian length, then a JSON object (https://github.com/huggingface/safetensors).
    Raises TokenCountError (model_files_missing, model_files_invalid).
    """
    sizes: dict[str, tuple[int, int]] = {}
    for path in _weight_files(model_path):
        for name, facts in _header(path).items():
            if name != "__metadata__":
                first, last = facts["data_offsets"]
                sizes[name] = (last - first, math.prod(facts["shape"]))
    return sizes


def _weight_files(model_path: str) -> list[Path]:
    index = read_model_json(model_path, "model.safetensors.index.json")
    names = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
    found = [model_file(model_path, name) for name in names]
    if None in found:
        missing = names[found.index(None)]
        raise TokenCountError("model_files_missing", f"{missing} of {Path(model_path).name} is not on this disk")
    return [path for path in found if path is not None]


def _header(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length < 100_000_000:
                raise ValueError(f"a head of {length} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
            return header
    except (OSError, ValueError) as error:
        raise TokenCountError("model_files_invalid", f"{path.name} cannot be read: {error}") from error
