"""Merges an adapter into its base: a complete 16-bit model folder, written beside, verified, then renamed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ftproject.engine.adapters import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    WEIGHTS_FILE,
    AdapterInfo,
    file_sha256,
    finite,
    new_folder,
    read_adapter_info,
    read_json,
    versions,
)
from ftproject.engine.backends.base import EngineError
from ftproject.engine.lora_weights import lora_pairs, lora_scaling, split_lora_name
from ftproject.engine.merge_check import MergeCheck, MergeProbe
from ftproject.engine.merged_weights import MergeSource, merged_bytes, write_merged_weights
from ftproject.engine.models import check_model_folder, local_model_folder
from ftproject.engine.processors import write_pixel_rule
from ftproject.engine.tensor_files import (
    INDEX_FILE,
    TensorEntry,
    folder_entries,
    quantised_weights,
    tensor_entries,
    weight_shapes,
)

SHARD_BYTES = 2 * 2**30
SPARE_DISK_BYTES = 64 * 2**20  # tokenizer, templates, provenance, and what else the disk needs to stay usable
COPIED_SUFFIXES = (".json", ".jinja", ".txt", ".model")
NOT_COPIED = ("config.json", INDEX_FILE, PROVENANCE_FILE)
CHECK_STEPS = 3  # base with adapter, merged weights loaded, compared: what on_progress counts beside the tensors
FROM_16_BIT = "the base's own 16-bit weights"
FROM_32_BIT = "the base's 32-bit weights, rounded to bfloat16"
FROM_4_BIT = (
    "the base's 4-bit weights, dequantised to 16 bit: the values that the adapter was trained on, "
    "not those of the model's 16-bit release"
)
TRAINED_IN_4_BIT = (
    "the adapter was trained on the base quantised to 4 bit and is merged into its 16-bit weights: "
    "answers may differ a little from those of the quantised base with the adapter"
)

OnProgress = Callable[[int, int, str], None]


class MergeError(EngineError):
    """A merge that cannot be done, was stopped, or did not pass its own check."""


@dataclass(frozen=True)
class MergePlan:
    """What a merge will write: bytes of weights, and the free disk space in bytes that it asks for."""

    model_bytes: int
    needed_bytes: int
    weights_from: str
    modules: int


@dataclass(frozen=True)
class MergeResult:
    """A finished merge; `path` is a folder that load_base_model and stock transformers load."""

    path: Path
    size_bytes: int
    shards: int
    modules: int
    weights_from: str
    check: MergeCheck
    warnings: list[str]
    duration_seconds: float


@dataclass(frozen=True)
class MergeParts:
    """What goes into one merge."""

    adapter: AdapterInfo
    base: Path
    source: MergeSource
    plan: MergePlan


class _Progress:
    """Counts the steps of a merge, tells of each, and ends it when the caller wants to stop."""

    def __init__(self, total: int, on_progress: OnProgress, should_stop: Callable[[], bool]) -> None:
        self._total = total
        self._done = 0
        self._on_progress = on_progress
        self._should_stop = should_stop

    def begin(self, message: str) -> None:
        if self._should_stop():
            raise MergeError("merge_stopped", "the merge was stopped; nothing of it was kept")
        self._on_progress(self._done, self._total, message)
        self._done += 1

    def end(self, message: str) -> None:
        self._on_progress(self._total, self._total, message)


def plan_merge(adapter: Path, base_path: str) -> MergePlan:
    """What a merge would write, from file headers only and without torch; nothing is changed.

    `base_path` is where resolve_model says the base is: a folder, or a hub id whose files are already on this machine.
    Raises MergeError (base_not_local, merge_not_supported), AdapterError, ModelError, TensorFileError.
    """
    base = local_model_folder(base_path, download=False)
    if base is None:
        raise MergeError("base_not_local", f"the weights of {base_path} are not on this machine yet")
    return open_merge(adapter, base).plan


def merge_adapter(
    adapter: Path,
    base_path: str,
    target: Path,
    *,
    provenance: Mapping[str, Any] | None = None,
    on_progress: OnProgress = lambda done, total, message: None,
    should_stop: Callable[[], bool] = lambda: False,
    shard_bytes: int = SHARD_BYTES,
) -> MergeResult:
    """Writes base + adapter as a 16-bit model folder at `target`, whole or not at all, and verifies it.

    Weights pass through memory one shard at a time; the check loads the base with its adapter, and later the merged
    model, never both. `on_progress(done, total, message)` comes before every tensor and part of the check, and
    `should_stop` is asked as often. `provenance` is plain JSON kept beside what the merge knows. A hub base that is
    not on this machine is fetched.
    Raises MergeError: model_exists, merge_not_supported, not_enough_disk, merge_stopped, adapter_not_effective,
    merge_differs; and AdapterError, ModelError or TensorFileError for what cannot be read.
    """
    started = time.monotonic()
    require_free_model_name(target)
    parts = open_merge(adapter, _fetched_base(base_path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _require_disk(target.parent, parts.plan.needed_bytes)
    progress = _Progress(len(merged_bytes(parts.source.entries)) + CHECK_STEPS, on_progress, should_stop)
    progress.begin("answering with base and adapter, to compare with")
    probe = _effective_probe(parts)
    with new_folder(target) as folder:
        shards = write_merged_weights(
            parts.source, folder, shard_bytes=shard_bytes, on_tensor=lambda name: progress.begin(f"merging {name}")
        )
        _write_small_files(parts, folder)
        progress.begin("loading the merged model")
        check = probe.compare(folder)
        if not check.passed:
            raise MergeError("merge_differs", f"the merged model does not answer as base and adapter do: {check}")
        progress.begin("writing the merged model to disk")
        warnings = _warnings(parts, check)
        _write_provenance(parts, folder, check, warnings, provenance or {})
    progress.end("merged")
    return MergeResult(
        path=target,
        size_bytes=sum(entry.stat().st_size for entry in target.iterdir()),
        shards=shards,
        modules=parts.plan.modules,
        weights_from=parts.plan.weights_from,
        check=check,
        warnings=warnings,
        duration_seconds=time.monotonic() - started,
    )


def _fetched_base(base_path: str) -> Path:
    base = local_model_folder(base_path, download=True)
    if base is None:
        raise MergeError("base_not_local", f"the weights of {base_path} cannot be had")
    return base


def _effective_probe(parts: MergeParts) -> MergeProbe:
    probe = MergeProbe(parts.base, parts.adapter)
    if not probe.effect:
        raise MergeError("adapter_not_effective", f"{parts.adapter.name} does not change the base's answers")
    return probe


def require_free_model_name(target: Path) -> None:
    """Raises MergeError model_exists when the name is taken."""
    if target.exists():
        raise MergeError("model_exists", f"a model {target.name!r} exists already")


def open_merge(adapter: Path, base: Path) -> MergeParts:
    """Everything that can be known before a tensor is read; raises what a merge of it would fail with."""
    info = read_adapter_info(adapter)
    config = read_json(adapter / CONFIG_FILE)
    check_model_folder(base)
    entries = folder_entries(base)
    if not entries:
        raise MergeError("base_not_local", f"the weights of {info.base_model_name} are not on this machine yet")
    pairs = lora_pairs(adapter / WEIGHTS_FILE)
    _require_plain_lora(info, config)
    shapes = weight_shapes(entries)
    for module, pair in pairs.items():
        if shapes.get(f"{module}.weight") != pair.weight_shape:
            raise MergeError("merge_not_supported", f"{info.name} changes {module}, which this base does not hold so")
    size = sum(merged_bytes(entries).values())
    plan = MergePlan(size, size + SPARE_DISK_BYTES, _weights_from(entries), len(pairs))
    return MergeParts(info, base, MergeSource(entries, pairs, lora_scaling(config)), plan)


def _require_plain_lora(info: AdapterInfo, config: Mapping[str, Any]) -> None:
    names = tensor_entries(info.path / WEIGHTS_FILE)
    strange = next((name for name in names if split_lora_name(name) is None), None)
    if not names or strange:
        raise MergeError("merge_not_supported", f"{info.name} holds {strange or 'no tensor'}, not only LoRA matrices")
    extra = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if config.get(key)]
    if extra:
        raise MergeError("merge_not_supported", f"{info.name} uses {', '.join(extra)}, which this merge does not know")


def _weights_from(entries: Mapping[str, TensorEntry]) -> str:
    if quantised_weights(dict(entries)):
        return FROM_4_BIT
    return FROM_32_BIT if any(entry.dtype == "F32" for entry in entries.values()) else FROM_16_BIT


def _require_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"the merged model needs {needed / 2**30:.1f} GiB of disk, and {free / 2**30:.1f} GiB are free"
        raise MergeError("not_enough_disk", message)


def _write_small_files(parts: MergeParts, folder: Path) -> None:
    """The base's processor, tokenizer, template and generation files, with the adapter's pixel rule; config.json."""
    for file in sorted(parts.base.iterdir()):
        if file.suffix in COPIED_SUFFIXES and file.name not in NOT_COPIED:
            shutil.copyfile(file, folder / file.name)
    if parts.adapter.pixel_rule is not None:
        write_pixel_rule(folder, parts.adapter.pixel_rule)
    config = read_json(parts.base / "config.json")
    config.pop("quantization_config", None)
    config["dtype"] = "bfloat16"
    config.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def _warnings(parts: MergeParts, check: MergeCheck) -> list[str]:
    trained = parts.adapter.provenance.get("config", {})
    model = trained.get("model_config_data") if isinstance(trained, dict) else None
    four_bit = isinstance(model, dict) and model.get("load_in_4bit") is True
    warnings = [TRAINED_IN_4_BIT] if four_bit and parts.plan.weights_from != FROM_4_BIT else []
    if check.noisy:
        share = round(100 * check.difference / check.effect)
        warnings.append(
            f"rounding to 16 bit adds noise of {share} % of what this weak adapter changes; use it unmerged"
        )
    return warnings


def _write_provenance(
    parts: MergeParts, folder: Path, check: MergeCheck, warnings: list[str], given: Mapping[str, Any]
) -> None:
    facts = {
        "created_at": datetime.now(UTC).isoformat(),
        "kind": "merged_model",
        "adapter": parts.adapter.name,
        "adapter_sha256": file_sha256(parts.adapter.path / WEIGHTS_FILE),
        "base_model_name": parts.adapter.base_model_name,
        "weights_from": parts.plan.weights_from,
        "modules_merged": parts.plan.modules,
        "check": asdict(check),
        "warnings": warnings,
        "versions": versions(),
        "adapter_provenance": parts.adapter.provenance,
        **given,
    }
    text = json.dumps(finite(facts), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / PROVENANCE_FILE).write_text(text, encoding="utf-8")
