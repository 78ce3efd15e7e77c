"""Checks the adapter_config.json of an adapter of other origin: plain LoRA for Qwen3-VL, or the reason why not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ftproject.engine.adapters import AdapterError
from ftproject.engine.models import MODEL_CLASSES

LARGEST_RANK = 1024
# What may be set in a LoraConfig (PEFT 0.21) without making it other than plain LoRA matrices. Which modules are
# meant is told by the tensors themselves, so the settings that choose modules do not matter.
NEUTRAL_SETTINGS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
# Others (pissa, olora, corda, eva, loftq) move the base's weights, so that the adapter fits a base of its own.
PLAIN_STARTS = (None, True, False, "gaussian")


def check_lora_settings(config: Mapping[str, Any]) -> None:
    """Raises AdapterError adapter_config_invalid or adapter_not_supported, naming the setting."""
    if config.get("peft_type") != "LORA":
        raise AdapterError("adapter_config_invalid", f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
    _require_rank(config.get("r"))
    for name in ("lora_alpha", "lora_dropout"):
        _require_number(name, config.get(name, 0.0), positive=name == "lora_alpha")
    others = sorted(name for name, value in config.items() if name not in NEUTRAL_SETTINGS and value)
    if others:
        message = f"{', '.join(others)} is set; only plain LoRA matrices are taken"
        raise AdapterError("adapter_not_supported", message)
    if config.get("bias", "none") != "none":
        raise AdapterError("adapter_not_supported", f"bias is {config['bias']!r}: trained biases are not taken")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        message = f"init_lora_weights is {config['init_lora_weights']!r}, which changes the base's weights as well"
        raise AdapterError("adapter_not_supported", message)
    _require_harmless_mapping(config.get("auto_mapping"))


def _require_rank(r: object) -> None:
    if isinstance(r, bool) or not isinstance(r, int) or not 1 <= r <= LARGEST_RANK:
        raise AdapterError("adapter_config_invalid", f"r is {r!r}, not a whole number from 1 to {LARGEST_RANK}")


def _require_number(name: str, value: object, *, positive: bool) -> None:
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not number or (positive and not float(value) > 0):  # type: ignore[arg-type]
        raise AdapterError("adapter_config_invalid", f"{name} is {value!r}, not a usable number")


def _require_harmless_mapping(mapping: object) -> None:
    """PEFT's auto classes import `parent_library`, whatever it names; Unsloth writes the ordinary class there."""
    if mapping is None:
        return
    known: Sequence[str] = tuple(MODEL_CLASSES.values())
    if not isinstance(mapping, Mapping):
        raise AdapterError("adapter_config_invalid", "auto_mapping is no object")
    library = str(mapping.get("parent_library") or "transformers.")
    class_name = mapping.get("base_model_class") or known[0]
    if not library.startswith("transformers.") or class_name not in known:
        message = f"auto_mapping names {library}.{class_name}; known are {' and '.join(known)} of transformers"
        raise AdapterError("adapter_holds_code", message)
