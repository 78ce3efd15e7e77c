"""Training on a GPU: step time, peak memory and loader wait against a plain script, and digits learnt through Unsloth.

`python -m benchmarks.gpu OUTPUT [--dry-run] [--seconds N]` writes OUTPUT/training.json and OUTPUT/digits.json. What
there is no time for, or what fails, is named there with the reason. `--dry-run` goes through the same steps on a CPU,
with a tiny random model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLOWEST, LONGEST_WAIT, RIGHT = 1.03, 0.05, 0.85
IMAGE_SIZE = (640, 480)
COLOURS, PLACES = ("red", "blue", "green", "dark", "light"), ("left of", "right of", "above", "below", "near")
THINGS = ("box", "line", "road", "tree", "house", "lamp", "wall", "door")
# Each with the seconds that it needs at most, the cheapest first.
CASES = {
    "2b-bf16": ("2b", False, 90),
    "2b-4bit": ("2b", True, 90),
    "8b-4bit": ("8b", True, 150),
    "8b-bf16": ("8b", False, 150),
}


@dataclass
class Session:
    """Where results go, and until when there is time."""

    output: Path
    folder: Path
    deadline: float
    dry: bool

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def write(self, name: str, figures: Any) -> None:
        (self.output / name).write_text(json.dumps(figures, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, default=540.0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    reason = None if options.dry_run else missing()
    if reason:
        sys.exit(f"nothing measured: {reason}")
    with tempfile.TemporaryDirectory(prefix="qwen3vl-gpu-") as folder:
        session = Session(options.output, Path(folder), time.monotonic() + options.seconds, options.dry_run)
        session.write("digits.json", attempt(session, 150, digits))
        cases = {"tiny": ("tiny", False, 300)} if session.dry else CASES
        figures: dict[str, Any] = {}
        for name, (shape, four_bit, seconds) in cases.items():
            figures[name] = attempt(session, seconds, compared, shape, four_bit)
            session.write("training.json", figures)  # what there is, should the next one be cut off
    print(json.dumps({name: verdict(case) for name, case in figures.items()}, indent=2))


def missing() -> str | None:
    """Why this machine cannot run the benchmark, or None."""
    try:
        import torch
        import transformers
        import trl
    except ImportError as error:
        return f"{error.name} is not installed (requirements-gpu.txt)"
    _ = transformers, trl
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def attempt(session: Session, seconds: float, part: Callable[..., Any], *arguments: Any) -> Any:
    """The part's figures, or why there are none; one part's failure leaves the others alone."""
    if session.seconds_left() < seconds:
        return {"skipped": f"{session.seconds_left():.0f} s were left, {seconds:.0f} s are needed"}
    try:
        return part(session, *arguments)
    except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
        return {"failed": f"{type(error).__name__}: {error}"[-2000:]}


def compared(session: Session, shape: str, four_bit: bool) -> dict[str, Any]:
    """Both sides, ours first, and the plain script on the same rows."""
    model = random_model(session, shape)
    work = session.folder / f"work-{shape}-{four_bit}"
    write_work(work, model, four_bit=four_bit, dry=session.dry)
    figures = {side: run(session, "benchmarks.gpu_contender", side, str(work)) for side in ("ours", "plain")}
    return figures | {"ratio": round(figures["ours"]["step_seconds"] / figures["plain"]["step_seconds"], 3)}


def random_model(session: Session, shape: str) -> Path:
    """The random model of a shape, written once; other shapes are removed, for the disk."""
    folder = session.folder / "models" / f"random-{shape}"
    if not folder.exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        run(session, "benchmarks.random_model", shape, str(folder))
    return folder


def run(session: Session, module: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")},
        capture_output=True,
        text=True,
        check=False,
        timeout=max(session.seconds_left(), 1.0),
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments[:1])}: {done.stderr[-1500:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def write_work(folder: Path, model: Path, *, four_bit: bool, dry: bool) -> None:
    """Rows of one photograph-sized noisy JPEG each and an answer of some 40 to 80 words, the same for the same call."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    rows, draw = [], random.Random(0)
    count = 8 if dry else 64
    size = (64, 64) if dry else IMAGE_SIZE
    for index in range(count):
        path = folder / f"{index}.jpg"
        coarse = np.random.RandomState(index).randint(0, 256, (12, 16, 3)).astype("uint8")
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        rows.append((str(path), _answer(draw)))
    work = {
        "model": str(model),
        "rows": rows,
        "four_bit": four_bit,
        "steps": 5 if dry else 20,
        "batch": 2,
        "accumulation": 1 if dry else 4,
        "max_pixels": 65_536 if dry else 1_003_520,
    }
    (folder / "work.json").write_text(json.dumps(work))


def _answer(draw: random.Random) -> str:
    parts = (
        f"a {draw.choice(COLOURS)} {draw.choice(THINGS)} {draw.choice(PLACES)}" for _ in range(draw.randint(10, 20))
    )
    return " ".join(parts) + " all of it."


def digits(session: Session) -> dict[str, Any]:
    """The bundled tiny model learns handwritten digits through the device's backend, in a process of its own."""
    return run(session, "benchmarks.gpu_digits", str(session.folder / "digits"), "6" if session.dry else "300")


def verdict(case: dict[str, Any]) -> str:
    """One line about a case, with what the bar says."""
    if "ours" not in case:
        return str(case.get("skipped") or case.get("failed"))
    ours, plain = case["ours"], case["plain"]
    good = case["ratio"] <= SLOWEST and ours["loader_wait_share"] < LONGEST_WAIT
    return (
        f"{ours['step_seconds']} s a step against {plain['step_seconds']} ({case['ratio']} x, bar {SLOWEST}), "
        f"peak {ours['peak_memory_mb']} against {plain['peak_memory_mb']} MiB, "
        f"loader {ours['loader_wait_share']:.1%} (bar {LONGEST_WAIT:.0%}): {'good' if good else 'NOT GOOD'}"
    )


if __name__ == "__main__":
    main()
