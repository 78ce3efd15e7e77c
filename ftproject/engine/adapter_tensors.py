"""Checks the LoRA matrices of an adapter of other origin: complete, of the right model, finite, and not all zero."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ftproject.engine.adapters import AdapterError
from ftproject.engine.lora_weights import PEFT_PREFIX, LoraPair, lora_pairs, split_lora_name
from ftproject.engine.tensor_files import TensorEntry
from ftproject.engine.tensor_values import FLOAT_TYPES, value_facts

MOST_TENSORS = 20_000
# Qwen3-VL's own module names, for bases that are not on this machine. A LoRA made with another class has other
# prefixes (`model.layers.`, `visual.`), and PEFT loads nothing of it without an error.
KNOWN_MODULE = re.compile(
    r"model\.visual\.(?:blocks\.\d+\.(?:attn\.(?:qkv|proj)|mlp\.linear_fc[12])"
    r"|(?:merger|deepstack_merger_list\.\d+)\.linear_fc[12])"
    r"|model\.language_model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
    r"|lm_head"
)


def checked_pairs(file: Path, entries: dict[str, TensorEntry], r: int) -> list[LoraPair]:
    """Both halves of every module, of rank `r` and a type that can be looked into.

    Raises AdapterError adapter_mismatch; `entries` are the tensors of `file`.
    """
    if not entries or len(entries) > MOST_TENSORS:
        raise AdapterError("adapter_mismatch", f"the weights hold {len(entries)} tensors")
    for name, entry in entries.items():
        if split_lora_name(name) is None:
            raise AdapterError("adapter_mismatch", f"{name} is no LoRA matrix of a module ({PEFT_PREFIX}<module>)")
        if entry.dtype not in FLOAT_TYPES or len(entry.shape) != 2:
            raise AdapterError("adapter_mismatch", f"{name} is {entry.dtype} of shape {list(entry.shape)}")
    pairs = lora_pairs(file)
    alone = {module for name in entries if (module := _module_of(name)) not in pairs}
    if alone:
        raise AdapterError("adapter_mismatch", f"{min(alone)} has not both matrices, or their ranks differ")
    wrong = next((pair for pair in pairs.values() if pair.r != r), None)
    if wrong is not None:
        raise AdapterError("adapter_mismatch", f"{wrong.module} has rank {wrong.r}, and r is {r}")
    return list(pairs.values())


def _module_of(name: str) -> str:
    split = split_lora_name(name)
    return split[0] if split else name


def require_fit(pairs: Sequence[LoraPair], shapes: Mapping[str, tuple[int, ...]] | None, base_name: str) -> None:
    """Raises AdapterError adapter_mismatch for a module that Qwen3-VL, or the base (its shapes given), has not so."""
    for pair in pairs:
        if KNOWN_MODULE.fullmatch(pair.module) is None:
            message = (
                f"{pair.module} is no module of Qwen3VLForConditionalGeneration that takes an adapter; an adapter "
                "made with another class loads without an error and does nothing"
            )
            raise AdapterError("adapter_mismatch", message)
        if shapes is None:
            continue
        wanted = shapes.get(f"{pair.module}.weight")
        if wanted != pair.weight_shape:
            found = "no such module" if wanted is None else f"{list(wanted)} there"
            message = f"{pair.module} changes a weight of {list(pair.weight_shape)}; {base_name} has {found}"
            raise AdapterError("adapter_mismatch", message)


def any_effect(pairs: Sequence[LoraPair]) -> bool:
    """Whether any module's update is not zero; raises AdapterError adapter_not_finite."""
    effective = False
    for pair in pairs:
        facts = [value_facts(entry) for entry in (pair.a, pair.b)]
        if not all(fact.finite for fact in facts):
            raise AdapterError("adapter_not_finite", f"the matrices of {pair.module} hold NaN or infinity")
        effective = effective or not any(fact.all_zero for fact in facts)
    return effective
