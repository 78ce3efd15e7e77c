"""Writes adapter folders whole or not at all, and reads them with suspicion."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from ftproject.engine.backends.base import EngineError
from ftproject.engine.models import PICKLES
from ftproject.engine.processors import PixelRule, save_processor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PROVENANCE_FILE = "provenance.json"
PARTIAL_PREFIX = ".partial-"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "unsloth")


class AdapterError(EngineError):
    """An adapter folder that cannot be written or may not be loaded."""


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder says about itself, read without torch."""

    path: Path
    name: str
    base_model_name: str
    r: int
    lora_alpha: int
    size_bytes: int
    provenance: dict[str, Any]

    @property
    def pixel_rule(self) -> PixelRule | None:
        """The areas that images had in training; null for a folder of other origin."""
        rule = self.provenance.get("pixel_rule")
        try:
            return PixelRule(int(rule["min_pixels"]), int(rule["max_pixels"])) if rule else None
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError("adapter_config_invalid", f"{self.name} has a damaged pixel_rule") from error


def read_adapter_info(path: Path) -> AdapterInfo:
    """The facts of a complete adapter folder.

    Raises AdapterError: adapter_not_found, adapter_incomplete, adapter_not_safetensors, adapter_config_invalid.
    """
    if not path.is_dir():
        raise AdapterError("adapter_not_found", f"there is no adapter {path.name!r}")
    names = [entry.name for entry in path.iterdir()]
    if any(name.endswith(PICKLES) for name in names):
        raise AdapterError("adapter_not_safetensors", f"{path.name} holds pickle files, which are never loaded")
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name not in names]
    if missing:
        raise AdapterError("adapter_incomplete", f"{path.name} lacks {', '.join(missing)}")
    config = read_json(path / CONFIG_FILE)
    if config.get("peft_type") != "LORA":
        raise AdapterError("adapter_config_invalid", f"{path.name} is no LoRA adapter")
    provenance = read_json(path / PROVENANCE_FILE) if PROVENANCE_FILE in names else {}
    return AdapterInfo(
        path=path,
        name=path.name,
        base_model_name=str(config.get("base_model_name_or_path") or ""),
        r=int(config.get("r") or 0),
        lora_alpha=int(config.get("lora_alpha") or 0),
        size_bytes=sum(entry.stat().st_size for entry in path.iterdir() if entry.is_file()),
        provenance=provenance,
    )


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object that a file of an adapter holds; raises AdapterError adapter_config_invalid."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError("adapter_config_invalid", f"{file.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise AdapterError("adapter_config_invalid", f"{file.name} is no JSON object")
    return value


def write_adapter(target: Path, fill: Callable[[Path], None]) -> None:
    """Lets `fill` write into a hidden folder beside `target`, syncs it to disk and renames it into place.

    Nothing is left when `fill` fails. Raises AdapterError adapter_exists when the name is taken.
    """
    require_free_name(target)
    with new_folder(target) as folder:
        fill(folder)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to write into; synced to disk and renamed into place, or gone after an error."""
    partial = target.parent / f"{PARTIAL_PREFIX}{target.name}-{uuid4().hex[:8]}"
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_folder(partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(target.parent)


def require_free_name(target: Path) -> None:
    """Raises AdapterError adapter_exists when the name is taken."""
    if target.exists():
        raise AdapterError("adapter_exists", f"an adapter {target.name!r} exists already")


def sync_folder(folder: Path) -> None:
    """Forces every file of a folder, and the folder's own entries, to disk."""
    for entry in sorted(folder.rglob("*")):
        _sync(entry)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sweep_partial_folders(parent: Path) -> list[str]:
    """Removes what a killed process left half-written; returns the names removed."""
    leftovers = sorted(parent.glob(f"{PARTIAL_PREFIX}*")) if parent.is_dir() else []
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)
    return [leftover.name for leftover in leftovers]


def save_adapter(
    model: Any,
    processor: Any,
    target: Path,
    *,
    base_model_name: str,
    facts: Mapping[str, Any],
    probe: Mapping[str, Any],
) -> bool:
    """Writes the trained adapter, the processor's files and provenance.json; returns whether it is effective.

    `facts` is plain JSON data for provenance.json; `probe` is a batch of model inputs for verify_adapter.
    """
    effective = False

    def fill(folder: Path) -> None:
        nonlocal effective
        # Embeddings are never trained; asking PEFT to find that out would ask the hub.
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        save_processor(processor, folder)
        # PEFT's model card would name the folder that the base was loaded from.
        (folder / "README.md").unlink(missing_ok=True)
        _name_the_base(folder / CONFIG_FILE, base_model_name)
        effective = verify_adapter(model, probe, folder)
        provenance = {
            "created_at": datetime.now(UTC).isoformat(),
            "base_model_name": base_model_name,
            "adapter_effective": effective,
            "versions": versions(),
            **facts,
        }
        text = json.dumps(finite(provenance), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / PROVENANCE_FILE).write_text(text, encoding="utf-8")

    write_adapter(target, fill)
    return effective


def _name_the_base(config_file: Path, base_model_name: str) -> None:
    config = read_json(config_file)
    config["base_model_name_or_path"] = base_model_name
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def versions() -> dict[str, str]:
    """The installed versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def finite(value: Any) -> Any:
    """The value with every NaN and infinity replaced by null, as JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value


def check_adapter_fits(model: Any, path: Path) -> None:
    """Compares the adapter's tensors with the base's modules by name and shape, before anything is loaded.

    PEFT changes the model before it notices a wrong shape. Raises AdapterError adapter_mismatch.
    """
    from safetensors import SafetensorError, safe_open

    modules = dict(model.named_modules())
    try:
        with safe_open(str(path / WEIGHTS_FILE), framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise AdapterError("adapter_unreadable", f"the weights of {path.name} cannot be read: {error}") from error
    for name, shape in shapes.items():
        module_name, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        module = modules.get(module_name)
        sizes = {"A.weight": (1, "in_features"), "B.weight": (0, "out_features")}
        side, attribute = sizes.get(part, (0, ""))
        if module is None or getattr(module, attribute, None) != shape[side]:
            raise AdapterError("adapter_mismatch", f"{path.name} does not fit this base model at {name}")


def verify_adapter(model: Any, batch: Mapping[str, Any], path: Path) -> bool:
    """Whether the saved adapter is the trained one and does something.

    True when the file's tensors equal the model's by name and value, not every lora_B is zero, and the logits of
    `batch` with the adapter differ from the base's.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(str(path / WEIGHTS_FILE))
    trained = get_peft_model_state_dict(model, save_embedding_layers=False)
    if saved.keys() != trained.keys():
        return False
    if any(not torch.equal(saved[name], trained[name].detach().cpu()) for name in saved):
        return False
    if not any(tensor.any() for name, tensor in saved.items() if "lora_B" in name):
        return False
    was_training = model.training
    model.eval()
    with torch.no_grad():
        tuned = model(**batch).logits
        with model.disable_adapter():
            base = model(**batch).logits
    model.train(was_training)
    return not torch.equal(tuned, base)
