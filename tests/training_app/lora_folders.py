"""Real LoRA adapters of the tiny model, drawn instead of trained: folders and zips for merges and imports."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ftproject.core.storage import adapters_dir
from ftproject.engine.adapters import read_adapter_info
from ftproject.engine.configs import TINY_MODEL_NAME
from training_app.adapter_services import file_sha256
from training_app.models import Adapter

RANK = 4
# Module -> (out, in) of the tiny model.
MODULES = {
    "model.language_model.layers.0.self_attn.q_proj": (128, 128),
    "model.language_model.layers.0.mlp.down_proj": (128, 256),
    "model.visual.blocks.0.attn.qkv": (288, 96),
}


def lora_tensors(
    modules: dict[str, tuple[int, int]] | None = None, *, seed: int = 0, effect: float = 0.05
) -> dict[str, Any]:
    """A and B of each module; an effect of 0 is the adapter that PEFT starts from."""
    chance = np.random.default_rng(seed)
    tensors = {}
    for name, (out, into) in (modules or MODULES).items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = chance.normal(size=(RANK, into)).astype("float32")
        tensors[f"base_model.model.{name}.lora_B.weight"] = (effect * chance.normal(size=(out, RANK))).astype("float32")
    return tensors


def lora_config(**changes: Any) -> dict[str, Any]:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "base_model_name_or_path": TINY_MODEL_NAME,
        "target_modules": ["q_proj", "down_proj", "qkv"],
        "inference_mode": True,
    }
    return config | changes


def write_adapter_folder(folder: Path, *, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True)
    save_file(lora_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(lora_config(**config)))
    return folder


def registered_adapter(name: str = "drawn", *, effective: bool | None = None, **content: Any) -> Adapter:
    """A drawn adapter as the product knows it."""
    folder = write_adapter_folder(adapters_dir() / name, **content)
    info = read_adapter_info(folder)
    return Adapter.objects.create(
        name=name,
        base_model_name=info.base_model_name,
        r=info.r,
        size_bytes=info.size_bytes,
        sha256=file_sha256(folder / "adapter_model.safetensors"),
        effective=effective,
    )


def zip_of(members: dict[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def folder_members(folder: Path, under: str = "") -> dict[str, bytes | str]:
    """The files of a folder as members of a zip, below `under`."""
    return {f"{under}{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
