#!/usr/bin/env bash
# One full run on a machine with an NVIDIA GPU, in one call: facts, the GPU tests, the conformance suite on Unsloth, the
# training benchmark, the main job. Usage: benchmarks/gpu_session.sh [OUTPUT_FOLDER] [SECONDS]
# Results are seven files in OUTPUT_FOLDER. A part that cannot run says why and leaves the others alone. PYTHON chooses
# the interpreter. Without a GPU only the facts are written, and `python -m benchmarks.gpu OUTPUT --dry-run` tries the
# benchmark out.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
seconds=${2:-570}
python=${PYTHON:-python3}
started=$SECONDS
mkdir -p "$out"

left() { echo $((seconds - (SECONDS - started))); }

part() { # part NAME MOST_SECONDS COMMAND...: its output in NAME.log, cut off when the time is up
    local name=$1 most=$2 room
    shift 2
    room=$(left)
    if [ "$room" -lt 20 ]; then
        echo "$name: skipped, $room s are left" | tee "$out/$name.log"
        return
    fi
    [ "$room" -lt "$most" ] && most=$room
    echo "== $name (at most $most s)"
    timeout --signal=INT --kill-after=10 "$most" "$@" >"$out/$name.log" 2>&1
    echo "$name: exit $?" | tee -a "$out/$name.log"
    tail -n 5 "$out/$name.log"
}

"$python" - "$out/facts.json" <<'PY'
import importlib.util
import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = "torch transformers trl peft accelerate bitsandbytes unsloth unsloth_zoo torchvision triton Django".split()


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


facts = {"python": sys.version.split()[0], "packages": {name: installed(name) for name in PACKAGES}, "gpu": None}
if shutil.which("nvidia-smi"):
    asked = "name,driver_version,memory.total"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    facts["gpu"] = subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
needed = [name for name in ("torch", "transformers", "trl", "peft") if importlib.util.find_spec(name) is None]
facts["missing"] = needed
if not needed:
    import torch

    facts["cuda"] = torch.cuda.is_available()
with open(sys.argv[1], "w") as file:
    json.dump(facts, file, indent=2)
print(json.dumps(facts, indent=2))
if needed:
    sys.exit(f"not installed: {', '.join(needed)} (requirements-gpu.txt)")
if not facts["cuda"]:
    sys.exit("torch sees no CUDA device: nothing else is run")
PY
if [ $? -ne 0 ]; then exit 1; fi

pytest=("$python" -m pytest -m gpu -q -p no:randomly -p no:cacheprovider)
part gpu-tests 120 "${pytest[@]}" tests/gpu
# In a process of its own: importing unsloth patches transformers, TRL and PEFT.
part conformance 150 "${pytest[@]}" tests/engine/conformance
part training $(($(left) - 45)) "$python" -m benchmarks.gpu "$out" --seconds $(($(left) - 55))
QWEN3VL_DATA_DIR=$(mktemp -d) part demo 60 "$python" manage.py demo
