"""Looks through the values of stored tensors with numpy, bfloat16 included: finite, and zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftproject.engine.tensor_files import TensorEntry

FLOAT_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class ValueFacts:
    """What the values of a tensor are like."""

    finite: bool
    all_zero: bool


def value_facts(entry: TensorEntry) -> ValueFacts:
    """Whether every value is finite and whether all are zero, for the types of FLOAT_TYPES; reads 8 MiB at a time."""
    finite = all_zero = True
    for chunk in entry.chunks():
        chunk_finite, chunk_zero = _look(entry.dtype, chunk)
        finite, all_zero = finite and chunk_finite, all_zero and chunk_zero
    return ValueFacts(finite, all_zero)


def _look(dtype: str, chunk: bytes) -> tuple[bool, bool]:
    import numpy as np

    if dtype == "BF16":  # numpy has no such type: all exponent bits set is NaN or infinity, all but the sign clear is 0
        bits: Any = np.frombuffer(chunk, dtype="<u2")
        return not bool(((bits & 0x7F80) == 0x7F80).any()), not bool((bits & 0x7FFF).any())
    values = np.frombuffer(chunk, dtype="<f4" if dtype == "F32" else "<f2")
    return bool(np.isfinite(values).all()), not bool(values.any())
