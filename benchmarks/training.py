"""The common work W (1,000 digits, 300 steps) in the engine against a plain TRL script, in turns: cpu, memory, answers.

`QWEN3VL_BENCH_STEPS` and `QWEN3VL_BENCH_ROUNDS` make it shorter or longer.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from django.conf import settings

from benchmarks.instance import print_table

ROWS, HELD_OUT, SIDE = 1000, 200, 64
STEPS = int(os.environ.get("QWEN3VL_BENCH_STEPS") or 300)
ROUNDS = int(os.environ.get("QWEN3VL_BENCH_ROUNDS") or 3)


def main() -> None:
    folder = Path(settings.DATA_DIR) / "work"
    heldout = write_work(folder)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    scores: dict[str, list[float]] = {"ours": [], "trl": []}
    for seed in range(ROUNDS):
        for side in runs:
            runs[side].append(run(side, folder, seed))
            scores[side].append(exact_match(folder / side / "adapter", heldout))
    again = run("ours", folder, seed=0)
    same = again["losses"] == runs["ours"][0]["losses"]
    print_table(f"Training on W, {STEPS} steps, {ROUNDS} rounds in turns", table(runs, scores, same))


def write_work(folder: Path) -> list[tuple[str, str]]:
    """The digits as PNG files, the first 1,000 of a fixed permutation; returns the held-out ones."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True)
    data = load_digits()
    rows = []
    for place, index in enumerate(np.random.RandomState(0).permutation(len(data.images))[: ROWS + HELD_OUT]):
        path = folder / f"{place:04d}.png"
        pixels = np.clip(data.images[index] * 16, 0, 255).astype("uint8")
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB").save(path)
        rows.append((str(path), str(data.target[index])))
    (folder / "work.json").write_text(json.dumps({"steps": STEPS, "rows": rows[:ROWS]}))
    return rows[ROWS:]


def run(side: str, folder: Path, seed: int) -> dict[str, Any]:
    """One job of one side: the seed draws the adapter and the order of the rows."""
    shutil.rmtree(folder / side, ignore_errors=True)
    work = json.loads((folder / "work.json").read_text())
    (folder / "work.json").write_text(json.dumps(work | {"seed": seed}))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_contender", side, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def exact_match(adapter: Path, heldout: list[tuple[str, str]]) -> float:
    """Both adapters are answered by the same evaluator, greedily."""
    from benchmarks.training_contender import QUESTION
    from ftproject.engine.adapters import CONFIG_FILE
    from ftproject.engine.backends import get_backend
    from ftproject.engine.configs import TINY_MODEL_NAME, TINY_MODEL_PATH, GenerationParams
    from ftproject.engine.conversations import Conversation, ResolvedConversation
    from ftproject.engine.gpu import device_facts

    config = json.loads((adapter / CONFIG_FILE).read_text()) | {"base_model_name_or_path": TINY_MODEL_NAME}
    (adapter / CONFIG_FILE).write_text(json.dumps(config))
    (adapter / "training_args.bin").unlink(missing_ok=True)
    model = get_backend("transformers", device_facts()).load(TINY_MODEL_NAME, str(TINY_MODEL_PATH))
    params = GenerationParams(max_new_tokens=8, do_sample=False)
    rows = [
        ResolvedConversation(Conversation(place, QUESTION, answer, answer, (path,)), (Path(path),))
        for place, (path, answer) in enumerate(heldout)
    ]
    answers = [
        answer
        for start in range(0, len(rows), 50)
        for answer in model.generate(rows[start : start + 50], params, adapter=adapter)
    ]
    return sum(answer.text == truth for answer, (_, truth) in zip(answers, heldout, strict=True)) / len(heldout)


def between(run: dict[str, Any], first: str, last: str, clock: str = "cpu") -> float:
    times = run["clock"][clock]
    return float(times[last]) - float(times.get(first, 0.0))


def table(
    runs: dict[str, list[dict[str, Any]]], scores: dict[str, list[float]], same: bool
) -> list[tuple[str, str, str]]:
    def compared(name: str, first: str, last: str, bar: str) -> tuple[str, str, str]:
        values = {side: [between(item, first, last) for item in runs[side]] for side in runs}
        ratios = [ours / trl for ours, trl in zip(values["ours"], values["trl"], strict=True)]
        words = f"{spread(values['ours'])} against {spread(values['trl'])} cpu s: {statistics.median(ratios):.2f} x"
        return name, f"{words} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})", bar

    own = [
        between(item, "loaded", "first_step", "wall") - between(item, "loaded", "trained", "wall") / STEPS
        for item in runs["ours"]
    ]
    peaks = {side: spread([item["clock"]["peak_mb"]["end"] for item in runs[side]], 0) for side in runs}
    means = {side: statistics.mean(found) for side, found in scores.items()}
    return [
        compared("training phase", "ready", "trained", "at most 1.0 x, target 0.8 x"),
        compared("whole job", "", "end", ""),
        compared("imports", "", "imported", ""),
        compared("loading the base, building the adapter", "imported", "loaded", ""),
        compared("rows and trainer", "loaded", "ready", ""),
        compared("after the last step: saved, verified", "trained", "end", ""),
        ("between the loaded model and the first step, wall", f"{spread(own)} s", "our own part at most 2 s"),
        ("peak memory", f"{peaks['ours']} against {peaks['trl']} MB", "not above"),
        ("held-out exact match, a seed each", f"{spread(scores['ours'], 3)} against {spread(scores['trl'], 3)}", ""),
        ("... mean", f"{means['ours']:.3f} against {means['trl']:.3f}", "at least .91"),
        ("losses of a round with the same seed equal to the last digit", "yes" if same else "NO", "yes"),
    ]


def spread(values: list[float], digits: int = 1) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)
