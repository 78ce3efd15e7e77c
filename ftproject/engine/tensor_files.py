"""Reads what safetensors files hold: names, shapes and bytes without torch, 4-bit weights too, and tensors with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.engine.backends.base import EngineError

INDEX_FILE = "model.safetensors.index.json"
# bitsandbytes stores how to undo the quantisation of `x.weight` as JSON bytes in a tensor of this name.
QUANT_STATE = ".quant_state.bitsandbytes__"
CHUNK_BYTES = 8 * 2**20


class TensorFileError(EngineError):
    """A safetensors file that is damaged or is not one."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: its type (`F32`, `BF16`, ...), its shape, and where its bytes stand in the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def read_bytes(self) -> bytes:
        """All its bytes; for tensors known to be small."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Its bytes in pieces of at most 8 MiB, so that a large tensor never stands in memory whole."""
        with self.file.open("rb") as handle:
            handle.seek(self.start)
            left = self.end - self.start
            while left:
                piece = handle.read(min(CHUNK_BYTES, left))
                if not piece:
                    raise TensorFileError("weights_unreadable", f"{self.file.name} ends in the middle of {self.name}")
                left -= len(piece)
                yield piece


def tensor_entries(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file by name; raises TensorFileError weights_unreadable.

    The library checks the header first (its size, overlaps, holes, the file's length); it does not tell offsets.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="np"):
            pass
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header: dict[str, Any] = json.loads(handle.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise TensorFileError("weights_unreadable", f"{file.name} is no complete safetensors file: {error}") from error
    header.pop("__metadata__", None)
    first = 8 + length
    return {
        name: TensorEntry(
            name=name,
            file=file,
            dtype=str(entry["dtype"]),
            shape=tuple(entry["shape"]),
            start=first + entry["data_offsets"][0],
            end=first + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }


def folder_entries(folder: Path) -> dict[str, TensorEntry]:
    """The tensors of every safetensors file of a model folder; raises TensorFileError."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX_FILE
    if index.is_file():
        files = [folder / name for name in sorted(_indexed_files(index))]
    entries: dict[str, TensorEntry] = {}
    for file in files:
        entries |= tensor_entries(file)
    return entries


def _indexed_files(index: Path) -> set[str]:
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise TensorFileError("weights_unreadable", f"{index.name} cannot be read: {error}") from error
    if any(Path(name).name != name for name in names):
        raise TensorFileError("weights_unreadable", f"{index.name} names a file outside the folder")
    return names


def weight_shapes(entries: dict[str, TensorEntry]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight as the model has it; a 4-bit weight's is told by its quantisation state."""
    shapes = {}
    states = quantised_weights(entries)
    for name, entry in entries.items():
        if name in states:
            shapes[name] = tuple(int(size) for size in _state(states[name])["shape"])
        elif not _belongs_to(name, states):
            shapes[name] = entry.shape
    return shapes


def quantised_weights(entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The quantisation state of every 4-bit weight, by the weight's name."""
    return {name.split(QUANT_STATE)[0]: entry for name, entry in entries.items() if QUANT_STATE in name}


def quantisation_parts(weight: str, entries: dict[str, TensorEntry]) -> list[TensorEntry]:
    """The tensors that a 4-bit weight needs beside itself to be undone."""
    return [entry for name, entry in entries.items() if name.startswith(f"{weight}.")]


def read_tensor(entry: TensorEntry) -> Any:
    """The tensor itself, as torch has it."""
    from safetensors import safe_open

    with safe_open(str(entry.file), framework="pt") as file:
        return file.get_tensor(entry.name)


def _belongs_to(name: str, states: dict[str, TensorEntry]) -> bool:
    return f"{name.rpartition('.weight.')[0]}.weight" in states


def _state(entry: TensorEntry) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(entry.read_bytes())
    except ValueError as error:
        raise TensorFileError("weights_unreadable", f"{entry.name} cannot be read: {error}") from error
    return state
