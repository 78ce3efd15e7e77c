"""Examines an adapter folder of other origin and takes over what is safe of it; no torch, no code of the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ftproject.engine.adapter_claims import LARGEST_JSON_BYTES, claims_of
from ftproject.engine.adapter_settings import check_lora_settings
from ftproject.engine.adapter_tensors import any_effect, checked_pairs, require_fit
from ftproject.engine.adapters import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    WEIGHTS_FILE,
    AdapterError,
    file_sha256,
    finite,
    new_folder,
    read_json,
    require_free_name,
    versions,
)
from ftproject.engine.device_rules import DeviceFacts, resolve_model
from ftproject.engine.fields import ConfigError
from ftproject.engine.lora_weights import LoraPair
from ftproject.engine.models import PICKLES, local_model_folder
from ftproject.engine.processors import PixelRule
from ftproject.engine.tensor_files import TensorFileError, folder_entries, tensor_entries, weight_shapes

LARGEST_WEIGHTS_BYTES = 8 * 2**30
MOST_FILES = 200
CODE_SUFFIXES = (".py", ".pyc", ".so", ".sh")
ANY_DEVICE = DeviceFacts(cuda=True, name=None, memory_total_mb=None, bf16=True)


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter folder holds, checked.

    `effective` is False when the update of every module is zero. `checked_against_base` says whether shapes were
    compared with the base's own weights or only with Qwen3-VL's names. `parts` is among "vision" and "language".
    """

    folder: Path
    base_model_name: str
    claimed_base_model_name: str
    r: int
    lora_alpha: float
    modules: tuple[str, ...]
    parts: tuple[str, ...]
    parameters: int
    dtype: str
    size_bytes: int
    sha256: str
    effective: bool
    checked_against_base: bool
    pixel_rule: PixelRule | None
    warnings: tuple[str, ...]
    config: Mapping[str, Any]
    claimed_provenance: Mapping[str, Any]


def find_adapter_folder(root: Path) -> Path:
    """The folder of an unpacked archive that is the adapter: itself, or the only one below that has its config.

    Raises AdapterError adapter_incomplete when there is none, adapter_ambiguous when there are several.
    """
    found = sorted(file.parent for file in root.rglob(CONFIG_FILE) if not file.is_symlink())
    if not found:
        raise AdapterError("adapter_incomplete", f"there is no {CONFIG_FILE}")
    if len(found) > 1:
        names = ", ".join(str(folder.relative_to(root)) for folder in found[:3])
        raise AdapterError("adapter_ambiguous", f"there are {len(found)} adapters ({names}, ...); upload one at a time")
    return found[0]


def inspect_adapter(
    folder: Path,
    *,
    models_dir: Path,
    base_model_name: str | None = None,
    largest_bytes: int = LARGEST_WEIGHTS_BYTES,
) -> AdapterFacts:
    """The facts of a PEFT folder, every one of its tensors looked at; nothing is written and no torch imported.

    `base_model_name` says which base it belongs to where its config names another machine's folder. Where the base's
    weights are on this machine, every module and shape is compared with them.
    Raises AdapterError: adapter_incomplete, adapter_not_safetensors, adapter_holds_code, adapter_too_large,
    adapter_config_invalid, adapter_not_supported, adapter_base_not_allowed, adapter_mismatch, adapter_not_finite,
    adapter_unreadable.
    """
    _require_safe_files(folder, largest_bytes)
    config = _checked_config(folder)
    claimed = str(config.get("base_model_name_or_path") or "")
    base_name, base_path = _allowed_base(base_model_name or claimed, models_dir)
    try:
        entries = tensor_entries(folder / WEIGHTS_FILE)
        shapes = _base_shapes(base_path)
    except TensorFileError as error:
        raise AdapterError("adapter_unreadable", error.message) from error
    pairs = checked_pairs(folder / WEIGHTS_FILE, entries, int(config["r"]))
    require_fit(pairs, shapes, base_name)
    provenance, rule, warnings = claims_of(folder)
    effective = any_effect(pairs)
    return AdapterFacts(
        folder=folder,
        base_model_name=base_name,
        claimed_base_model_name=claimed,
        r=int(config["r"]),
        lora_alpha=float(config["lora_alpha"]),
        modules=tuple(pair.module for pair in pairs),
        parts=_parts(pairs),
        parameters=sum(entry.elements for entry in entries.values()),
        dtype=pairs[0].a.dtype,
        size_bytes=(folder / WEIGHTS_FILE).stat().st_size,
        sha256=file_sha256(folder / WEIGHTS_FILE),
        effective=effective,
        checked_against_base=shapes is not None,
        pixel_rule=rule,
        warnings=(*warnings, *_warnings(effective, shapes is not None, base_name, claimed)),
        config=config,
        claimed_provenance=provenance,
    )


def import_adapter(facts: AdapterFacts, target: Path, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Takes an examined folder over as an adapter of this project: whole or not at all.

    Only the weights and the settings that LoRA needs are taken; target_modules becomes the list of modules that have
    weights (a regular expression of a stranger would be run by PEFT), and of its provenance only the pixel rule
    counts, the rest is kept under `claimed`. Raises AdapterError adapter_exists.
    """
    require_free_name(target)
    with new_folder(target) as folder:
        shutil.copyfile(facts.folder / WEIGHTS_FILE, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(_own_config(facts), indent=2, sort_keys=True), encoding="utf-8")
        text = json.dumps(finite(_own_provenance(facts, provenance or {})), indent=2, allow_nan=False)
        (folder / PROVENANCE_FILE).write_text(text, encoding="utf-8")


def _require_safe_files(folder: Path, largest_bytes: int) -> None:
    entries = list(folder.rglob("*"))
    if len(entries) > MOST_FILES:
        raise AdapterError("adapter_too_large", f"{len(entries)} files are more than the {MOST_FILES} allowed")
    for entry in entries:
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise AdapterError("adapter_holds_code", f"{entry.name} is a link or no plain file")
        if entry.name.lower().endswith(PICKLES):
            message = f"{entry.name} may hold a pickle; save the adapter as safetensors and leave such files out"
            raise AdapterError("adapter_not_safetensors", message)
        if entry.name.lower().endswith(CODE_SUFFIXES):
            raise AdapterError("adapter_holds_code", f"{entry.name} is code, which is never taken")
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise AdapterError("adapter_incomplete", f"the folder lacks {', '.join(missing)}")
    size = (folder / WEIGHTS_FILE).stat().st_size
    if size > largest_bytes:
        raise AdapterError(
            "adapter_too_large", f"{size:,} bytes of weights are more than the {largest_bytes:,} allowed"
        )


def _checked_config(folder: Path) -> dict[str, Any]:
    if (folder / CONFIG_FILE).stat().st_size > LARGEST_JSON_BYTES:
        raise AdapterError("adapter_config_invalid", f"{CONFIG_FILE} is larger than {LARGEST_JSON_BYTES:,} bytes")
    config = read_json(folder / CONFIG_FILE)
    check_lora_settings(config)
    return config


def _allowed_base(name: str, models_dir: Path) -> tuple[str, str]:
    try:
        # Whether this machine could run the base is another question.
        return resolve_model(name or "(none)", ANY_DEVICE, models_dir=models_dir)
    except ConfigError as error:
        hint = f"; {error.hint}, and name it as base_model_name" if error.hint else ""
        raise AdapterError("adapter_base_not_allowed", f"{error.problems[0].message}{hint}") from error


def _base_shapes(base_path: str) -> dict[str, tuple[int, ...]] | None:
    """The shapes of the base's weights; None where they are not all on this machine."""
    folder = local_model_folder(base_path, download=False)
    if folder is None:
        return None
    try:
        return weight_shapes(folder_entries(folder)) or None
    except TensorFileError:  # a download that was never finished
        return None


def _parts(pairs: Sequence[LoraPair]) -> tuple[str, ...]:
    parts = {"vision" if pair.module.startswith("model.visual.") else "language" for pair in pairs}
    return tuple(sorted(parts, reverse=True))


def _warnings(effective: bool, checked: bool, base_name: str, claimed: str) -> list[str]:
    warnings = []
    if not effective:
        warnings.append("the adapter does nothing: its lora_B matrices are all zero")
    if not checked:
        warnings.append(f"the weights of {base_name} are not on this machine: shapes were not compared with them")
    if claimed != base_name:
        warnings.append(f"its config names the base {claimed!r}; it is taken as {base_name}")
    return warnings


def _own_config(facts: AdapterFacts) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": facts.base_model_name,
        "r": facts.r,
        "lora_alpha": facts.config["lora_alpha"],
        "lora_dropout": facts.config.get("lora_dropout", 0.0),
        "use_rslora": bool(facts.config.get("use_rslora")),
        "target_modules": sorted(facts.modules),
        "bias": "none",
        "inference_mode": True,
    }


def _own_provenance(facts: AdapterFacts, given: Mapping[str, Any]) -> dict[str, Any]:
    rule = facts.pixel_rule
    return {
        "created_at": datetime.now(UTC).isoformat(),
        "kind": "imported_adapter",
        "base_model_name": facts.base_model_name,
        "adapter_effective": facts.effective,
        "weights_sha256": facts.sha256,
        "checked_against_base": facts.checked_against_base,
        "warnings": list(facts.warnings),
        "versions": versions(),
        "claimed": {"base_model_name": facts.claimed_base_model_name, "provenance": facts.claimed_provenance},
        **({"pixel_rule": asdict(rule)} if rule else {}),
        **given,
    }
