"""Build the tiny Qwen3-VL: tokenizer, pre-training on drawings, and a folder in the real model's layout."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftproject.engine.tiny.architecture import (
    image_processor_config,
    tiny_config,
    tiny_generation_config,
    video_processor_config,
)
from ftproject.engine.tiny.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

    from ftproject.engine.tiny.drawings import TaskName
    from ftproject.engine.tiny.pretraining import ProgressCallback


class OutputNotEmptyError(FileExistsError):
    """The output folder already holds something, which a build would mix with its own files."""


@dataclass(frozen=True)
class BuildReport:
    """What one build made, what it cost and how well the saved weights do on drawings they never saw."""

    output_dir: Path
    steps: int
    seed: int
    threads: int
    parameters: int
    vocabulary: int
    final_loss: float
    held_out_exact_match: Mapping["TaskName", float]
    wall_seconds: float
    cpu_seconds: float
    file_bytes: Mapping[str, int]


def build_tiny_model(
    output_dir: Path,
    *,
    steps: int = 1500,
    seed: int = 0,
    threads: int = 1,
    held_out_per_task: int = 200,
    on_progress: "ProgressCallback | None" = None,
) -> BuildReport:
    """Pre-train the tiny Qwen3-VL on the CPU and save it to `output_dir`, which appears only when complete.

    `seed` decides the initial weights; the drawings are the same for every seed. The same arguments on one
    machine give the same bytes. 1500 steps take 4 to 8 minutes of one core; a second thread is slower on a
    busy machine.
    `on_progress` gets (finished steps, `steps`, loss) after each step.

    Raises ValueError for a count below 1 and OutputNotEmptyError for a folder in use, before any work.
    """
    _check_arguments(output_dir, steps=steps, threads=threads, held_out_per_task=held_out_per_task)
    from ftproject.engine.tiny.pretraining import pretrain, score_tasks

    wall, cpu = time.perf_counter(), time.process_time()
    tokenizer = train_tokenizer()
    with _torch_settings(seed=seed, threads=threads):
        model = _new_model(tokenizer)
        final_loss = pretrain(model, tokenizer, steps=steps, on_progress=on_progress)
        _round_to_bfloat16(model)
        scores = score_tasks(model, tokenizer, samples_per_task=held_out_per_task)
    _save(model, tokenizer, output_dir)
    return BuildReport(
        output_dir=output_dir,
        steps=steps,
        seed=seed,
        threads=threads,
        parameters=model.num_parameters(),
        vocabulary=len(tokenizer),
        final_loss=final_loss,
        held_out_exact_match=scores,
        wall_seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
        file_bytes={path.name: path.stat().st_size for path in sorted(output_dir.iterdir())},
    )


def _check_arguments(output_dir: Path, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if output_dir.exists() and any(output_dir.iterdir()):
        raise OutputNotEmptyError(f"{output_dir} is not empty; name a new folder")


@contextmanager
def _torch_settings(*, seed: int, threads: int) -> Iterator[None]:
    """Seed torch and set its thread count, and give both back as they were found."""
    import torch

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads_before)


def _new_model(tokenizer: "Qwen2Tokenizer") -> "Qwen3VLForConditionalGeneration":
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration(tiny_config(tokenizer))
    model.generation_config = tiny_generation_config(tokenizer)
    return model


def _round_to_bfloat16(model: "Qwen3VLForConditionalGeneration") -> None:
    """Give the weights the precision they are saved with, so that the scores are those of the saved model."""
    import torch

    model.to(torch.bfloat16).to(torch.float32)


def _save(model: "Qwen3VLForConditionalGeneration", tokenizer: "Qwen2Tokenizer", output_dir: Path) -> None:
    import torch

    partial = output_dir.with_name(f".partial-{output_dir.name}")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    _write_json(partial / "preprocessor_config.json", image_processor_config())
    _write_json(partial / "video_preprocessor_config.json", video_processor_config())
    if output_dir.exists():
        output_dir.rmdir()
    partial.rename(output_dir)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
