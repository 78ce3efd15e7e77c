"""What a merge into 16-bit weights keeps of an adapter, by nearest rounding and by chance, and the memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = 160
# Learning rate and steps: the demo's recipe, the defaults of a training, and next to nothing.
STRENGTHS = {"4e-3, 40 steps": (4e-3, 40), "2e-4, 30 steps (defaults)": (2e-4, 30), "2e-5, 5 steps": (2e-5, 5)}
SHARD_BYTES = 128 * 2**20


def main() -> None:
    from django.conf import settings

    from benchmarks.gpu_digits import conversations, write_digits
    from benchmarks.instance import print_table

    folder = Path(settings.DATA_DIR) / "merging"
    rows = conversations(write_digits(folder / "digits"))[:ROWS]
    print_table("Effect kept by a merge into bfloat16", [kept(name, folder, rows) for name in STRENGTHS])
    print_table("Merging a random model of 0.4 billion parameters", memory(folder))


def kept(name: str, folder: Path, rows: list[Any]) -> tuple[str, str, str]:
    """One adapter of the tiny model, merged both ways."""
    rate, steps = STRENGTHS[name]
    adapter = train_adapter(folder / f"{rate}", rows, rate, steps)
    nearest, chance = merged_by("nearest", adapter), merged_by("chance", adapter)
    shares = f"kept {nearest.kept:.0%} by nearest, {chance.kept:.0%} by chance"
    noise = f"difference {nearest.difference:.3%} and {chance.difference:.3%}"
    return name, f"effect {chance.effect:.2%} of the logits; {shares}; {noise}", "all of it"


def train_adapter(folder: Path, rows: list[Any], rate: float, steps: int) -> Path:
    from benchmarks.gpu_contender import Stopwatch, _Listener
    from ftproject.engine.backends.base import TrainingJob
    from ftproject.engine.configs import parse_training_config, resolve_training_config
    from ftproject.engine.gpu import device_facts
    from ftproject.engine.training import train

    body = {
        "model_config_data": {"model_name": "tiny-qwen3-vl"},
        "sft_config": {"learning_rate": rate, "max_steps": steps, "per_device_train_batch_size": 8, "seed": 0},
        "lora_config": {"lora_alpha": 32},
    }
    device = device_facts()
    effective = resolve_training_config(parse_training_config(body), device, models_dir=folder)
    job = TrainingJob(effective, rows, [], folder / "adapter", folder / "work")
    return train(job, _Listener(Stopwatch()), device=device).adapter_path


@dataclass(frozen=True)
class Kept:
    """As MergeCheck counts it."""

    effect: float
    kept: float
    difference: float


def merged_by(rounding: str, adapter: Path) -> Kept:
    """The tiny model's logits with its weights merged by one way of rounding; nothing is written."""
    import zlib

    import torch

    from ftproject.engine.adapters import read_adapter_info
    from ftproject.engine.configs import TINY_MODEL_PATH
    from ftproject.engine.merge_check import MergeProbe
    from ftproject.engine.merged_weights import stochastic_bfloat16
    from ftproject.engine.merging import open_merge
    from ftproject.engine.models import load_base_model
    from ftproject.engine.tensor_files import read_tensor

    parts = open_merge(adapter, TINY_MODEL_PATH)
    probe = MergeProbe(TINY_MODEL_PATH, read_adapter_info(adapter))
    model = load_base_model(str(TINY_MODEL_PATH), device="cpu")
    weights = dict(model.named_parameters())
    for module, pair in parts.source.pairs.items():
        name = f"{module}.weight"
        update = (read_tensor(pair.b).float() @ read_tensor(pair.a).float()) * parts.source.scaling
        merged = weights[name].detach() + update
        rounded = (
            merged.to(torch.bfloat16)
            if rounding == "nearest"
            else stochastic_bfloat16(merged, seed=zlib.crc32(name.encode()))
        )
        weights[name].data = rounded.float()
    check = probe.check(model)
    return Kept(check.effect, check.kept_effect, check.difference)


def memory(folder: Path) -> list[tuple[str, str, str]]:
    """Peak memory and time of the weights alone, ours and PEFT's, each in a process of its own."""
    from benchmarks.random_model import write_random_model

    model = folder / "random"
    parameters = write_random_model("400m", model)
    lines = []
    for side in ("ours", "peft"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.merging", side, str(model), str(folder / f"merged-{side}")],
            capture_output=True,
            text=True,
            check=True,
        )
        figures = json.loads(done.stdout.splitlines()[-1])
        text = f"{figures['peak_mb']} MiB above the imports' {figures['imports_mb']}, {figures['seconds']} s"
        lines.append((f"{side}: {parameters / 1e9:.2f} billion parameters", text, "bounded by the shard of 128 MiB"))
    return lines


def merge_alone(side: str, model: Path, target: Path) -> dict[str, Any]:
    """A random adapter of rank 16 on every language projection, merged and written; no comparison."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    from ftproject.engine.configs import LoraSettings
    from ftproject.engine.lora_weights import PEFT_PREFIX, lora_pairs
    from ftproject.engine.merged_weights import MergeSource, write_merged_weights
    from ftproject.engine.models import load_base_model, lora_target_regex
    from ftproject.engine.tensor_files import folder_entries, weight_shapes

    target.mkdir()
    imports = _peak_mb()
    started = time.monotonic()
    if side == "peft":
        base = load_base_model(str(model), device="cpu", dtype=torch.bfloat16)
        lora = LoraConfig(r=16, target_modules=lora_target_regex(LoraSettings(finetune_vision_layers=False)))
        get_peft_model(base, lora).merge_and_unload().save_pretrained(target)
    else:
        entries = folder_entries(model)
        adapter: dict[str, Any] = {}
        for name, shape in weight_shapes(entries).items():
            if "_proj.weight" in name and "language_model" in name:
                module = PEFT_PREFIX + name.removesuffix(".weight")
                adapter[f"{module}.lora_A.weight"] = torch.randn(16, shape[1])
                adapter[f"{module}.lora_B.weight"] = torch.zeros(shape[0], 16)
        save_file(adapter, str(target / "adapter.safetensors"))
        del adapter
        pairs = lora_pairs(target / "adapter.safetensors")
        source = MergeSource(entries, pairs, 1.0)
        write_merged_weights(source, target, shard_bytes=SHARD_BYTES, on_tensor=lambda name: None)
    return {
        "imports_mb": imports,
        "peak_mb": _peak_mb() - imports,
        "seconds": round(time.monotonic() - started, 1),
    }


def _peak_mb() -> int:
    # Not ru_maxrss: a child takes that over from the process that started it.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) // 1024


if __name__ == "__main__":
    print(json.dumps(merge_alone(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
