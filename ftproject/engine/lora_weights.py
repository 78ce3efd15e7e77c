"""Reads the LoRA of an adapter folder: which modules it changes, and the change to each one's weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.engine.tensor_files import TensorEntry, tensor_entries

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraPair:
    """The two factors of one module's update; A has shape (r, in), B has (out, r)."""

    module: str
    a: TensorEntry
    b: TensorEntry

    @property
    def r(self) -> int:
        """The rank of the update."""
        return self.a.shape[0]

    @property
    def weight_shape(self) -> tuple[int, int]:
        """The shape (out, in) of the weight that it changes."""
        return self.b.shape[0], self.a.shape[1]


def split_lora_name(name: str) -> tuple[str, str] | None:
    """Module and side ("A" or "B") of `base_model.model.<module>.lora_A.weight`; None for any other name."""
    for side in "AB":
        suffix = f".lora_{side}.weight"
        if name.startswith(PEFT_PREFIX) and name.endswith(suffix):
            return name[len(PEFT_PREFIX) : -len(suffix)], side
    return None


def lora_pairs(file: Path) -> dict[str, LoraPair]:
    """The complete pairs of an adapter's weights, by module; other tensors and lone halves are left out."""
    halves: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in tensor_entries(file).items():
        split = split_lora_name(name)
        if split is not None and len(entry.shape) == 2:
            halves.setdefault(split[0], {})[split[1]] = entry
    return {
        module: LoraPair(module, pair["A"], pair["B"])
        for module, pair in sorted(halves.items())
        if pair.keys() == {"A", "B"} and pair["A"].shape[0] == pair["B"].shape[1]
    }


def lora_scaling(config: dict[str, Any]) -> float:
    """The factor of the update B @ A: alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv 2312.03732)."""
    alpha, r = float(config["lora_alpha"]), int(config["r"])
    return alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r
