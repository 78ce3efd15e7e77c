"""The bundled tiny model learns 1,000 handwritten digits and answers 200 others; prints its figures as a line of JSON.

`python -m benchmarks.gpu_digits FOLDER STEPS`: through unsloth where it is installed and a CUDA device is there, else
through transformers.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_contender import Stopwatch, _Listener

ROWS, HELD_OUT, SIDE = 1000, 200, 64
QUESTION = "Which digit is shown in the image?"


def main() -> None:
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    print(json.dumps(learn_digits(folder, steps)))


def learn_digits(folder: Path, steps: int) -> dict[str, Any]:
    """Exact match of base and adapter on the held-out digits, and what the training took."""
    from ftproject.engine.backends import get_backend
    from ftproject.engine.backends.base import TrainingJob
    from ftproject.engine.configs import TINY_MODEL_NAME, TINY_MODEL_PATH, GenerationParams
    from ftproject.engine.gpu import device_facts

    rows = write_digits(folder)
    trained, heldout = rows[:ROWS], rows[ROWS:]
    device = device_facts()
    backend = "unsloth" if device.cuda and importlib.util.find_spec("unsloth") else "transformers"
    job = TrainingJob(configuration(backend, steps), conversations(trained), [], folder / "adapter", folder / "runs")
    watch = Stopwatch()
    started = time.monotonic()
    result = get_backend(backend, device).train(job, _Listener(watch))
    seconds = time.monotonic() - started
    model = get_backend(backend, device).load(TINY_MODEL_NAME, str(TINY_MODEL_PATH), load_in_4bit=False)
    asked = conversations(heldout)
    params = GenerationParams(max_new_tokens=8, do_sample=False)
    right = {}
    for name, adapter in (("base", None), ("finetuned", result.adapter_path)):
        answers = model.generate(asked, params, adapter=adapter)
        right[name] = sum(answer.text == truth for answer, (_, truth) in zip(answers, heldout, strict=True))
    return {
        "backend": backend,
        "steps": steps,
        "training_seconds": round(seconds, 1),
        "exact_match": {name: count / len(heldout) for name, count in right.items()},
        **watch.figures(),
    }


def write_digits(folder: Path) -> list[tuple[str, str]]:
    """Path and digit of each image, in a fixed order."""
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
    return rows


def configuration(backend: str, steps: int) -> Any:
    """The recipe of the tiny model's digits on this device."""
    from ftproject.engine.configs import parse_training_config, resolve_training_config
    from ftproject.engine.gpu import device_facts

    sft = {
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "learning_rate": 4e-3,
        "max_steps": steps,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "save_steps": 1000,
        "seed": 0,
    }
    body = {
        "model_config_data": {"model_name": "tiny-qwen3-vl", "load_in_4bit": False},
        "sft_config": sft,
        "lora_config": {"lora_alpha": 32},
    }
    effective = resolve_training_config(
        parse_training_config(body), device_facts(), models_dir=Path("none"), backend=backend
    )
    return replace(effective, warnings=[])


def conversations(rows: list[tuple[str, str]]) -> list[Any]:
    from ftproject.engine.conversations import Conversation, ResolvedConversation

    return [
        ResolvedConversation(Conversation(place, QUESTION, answer, answer, (path,)), (Path(path),))
        for place, (path, answer) in enumerate(rows)
    ]


if __name__ == "__main__":
    main()
