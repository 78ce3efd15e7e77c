"""What the web process imports from the engine leaves torch and its kin alone."""

import subprocess
import sys

LIGHT = [
    "adapter_import",
    "adapters",
    "backends.base",
    "backends",
    "classification",
    "configs",
    "conversations",
    "gpu",
    "images",
    "merging",
    "metrics",
    "models",
    "processors",
    "checkpoints",
    "memory_estimate",
    "split_sizes",
    "splits",
    "thumbnails",
    "token_counts",
]
HEAVY = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "sklearn",
    "numpy",
    "PIL",
    "accelerate",
    "unsloth",
    "django",
]


def test_the_light_modules_import_nothing_heavy_and_resolve_without_torch() -> None:
    code = f"""
import importlib, sys
from pathlib import Path
for name in {LIGHT!r}:
    importlib.import_module("ftproject.engine." + name)
from ftproject.engine import configs, gpu
gpu.gpu_stats()
configs.resolve_training_config(configs.parse_training_config({{}}), gpu.device_facts(), models_dir=Path("."))
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
