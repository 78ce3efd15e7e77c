#!/usr/bin/env bash
# One full run on a machine with an NVIDIA GPU: facts, the GPU tests, the main job. Usage: benchmarks/gpu_session.sh [OUTPUT_FOLDER]
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
mkdir -p "$out"
python=${PYTHON:-python3}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.csv"
"$python" - <<'PY' | tee "$out/versions.txt"
from importlib.metadata import PackageNotFoundError, version

for name in ("torch", "transformers", "trl", "peft", "bitsandbytes", "unsloth", "unsloth_zoo", "torchvision", "Django"):
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "not installed")
PY
timeout 240 "$python" -m pytest tests/gpu -m gpu -q -p no:randomly 2>&1 | tee "$out/gpu-tests.log"
QWEN3VL_DATA_DIR=${QWEN3VL_DATA_DIR:-$(mktemp -d)} timeout 240 "$python" manage.py demo 2>&1 | tee "$out/demo.log"
