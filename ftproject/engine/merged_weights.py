"""Writes the 16-bit weights of base + adapter shard by shard, holding one shard in memory."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.engine.lora_weights import LoraPair
from ftproject.engine.tensor_files import (
    INDEX_FILE,
    TensorEntry,
    TensorFileError,
    quantisation_parts,
    quantised_weights,
    read_tensor,
    weight_shapes,
)

SIXTEEN_BIT_BYTES = 2
KEPT_TYPES = ("BF16", "F16")  # every other floating type becomes bfloat16
FLOATING_TYPES = ("F64", "F32", *KEPT_TYPES)


@dataclass(frozen=True)
class MergeSource:
    """The base's tensors, the adapter's pairs by module, and the factor of their product."""

    entries: dict[str, TensorEntry]
    pairs: dict[str, LoraPair]
    scaling: float


def merged_bytes(entries: dict[str, TensorEntry]) -> dict[str, int]:
    """Size in bytes of every tensor of the merged model, by name in the base's order."""
    states = quantised_weights(entries)
    sizes = {}
    for name, shape in weight_shapes(entries).items():
        entry = entries[name]
        if name in states or entry.dtype in FLOATING_TYPES:
            count = 1
            for size in shape:
                count *= size
            sizes[name] = count * SIXTEEN_BIT_BYTES
        else:
            sizes[name] = entry.end - entry.start
    return sizes


def shards_of(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """The tensor names in groups of at most `shard_bytes`; a larger tensor stands alone."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards


def write_merged_weights(
    source: MergeSource, folder: Path, *, shard_bytes: int, on_tensor: Callable[[str], None]
) -> int:
    """Writes model.safetensors, or numbered shards and their index; returns how many files.

    `on_tensor` is told each tensor's name before it is merged, and ends the writing by raising.
    """
    from safetensors.torch import save_file

    sizes = merged_bytes(source.entries)
    shards = shards_of(sizes, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(dict(_merged(source, names, on_tensor)), str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")
    return len(shards)


def _merged(source: MergeSource, names: list[str], on_tensor: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    for name in names:
        on_tensor(name)
        yield name, _merged_tensor(source, name).contiguous()


def _merged_tensor(source: MergeSource, name: str) -> Any:
    """One weight with its update added in float32, brought to 16 bit once."""
    import torch

    weight = _base_tensor(source.entries, name)
    if not weight.is_floating_point():
        return weight
    dtype = torch.float16 if weight.dtype == torch.float16 else torch.bfloat16
    pair = source.pairs.get(name.removesuffix(".weight"))
    if pair is None:
        return weight.to(dtype)
    a, b = (read_tensor(entry).float() for entry in (pair.a, pair.b))
    merged = weight.float() + (b @ a) * source.scaling
    if not torch.isfinite(merged).all():
        raise TensorFileError("weights_not_finite", f"{name} is not finite once the adapter is merged into it")
    return merged.to(dtype) if dtype == torch.float16 else stochastic_bfloat16(merged, seed=zlib.crc32(name.encode()))


def stochastic_bfloat16(values: Any, *, seed: int) -> Any:
    """float32 values in bfloat16, up or down by chance so that the mean error is zero; the same for the same seed.

    A base's weights lie on the bfloat16 grid, so an update below half a step is rounded away wherever it is: of a weak
    adapter's effect 30 % was left by nearest rounding, 90 % this way (docs/decisions/014-merging.md).
    """
    import torch

    noise = torch.randint(0, 2**16, values.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    bits = (values.contiguous().view(torch.int32) + noise) & -(2**16)
    return bits.view(torch.float32).to(torch.bfloat16)


def _base_tensor(entries: dict[str, TensorEntry], name: str) -> Any:
    """A weight of the base; a 4-bit one dequantised into the type that it was quantised from."""
    if name not in quantised_weights(entries):
        return read_tensor(entries[name])
    from bitsandbytes.functional import QuantState, dequantize_4bit

    parts = {entry.name: read_tensor(entry) for entry in quantisation_parts(name, entries)}
    state = QuantState.from_dict(parts, device="cpu")
    return dequantize_4bit(read_tensor(entries[name]), state)
