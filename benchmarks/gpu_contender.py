"""One side of the GPU training benchmark, alone in a process; prints its figures as one line of JSON.

`python -m benchmarks.gpu_contender ours|plain FOLDER`: FOLDER/work.json says model, rows, steps and precision. `ours`
is the engine with the backend of the device; `plain` is the script of Unsloth's documentation where unsloth is
installed, else that of TRL's.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

QUESTION = "What does the image show? Answer in one paragraph."
RATE, WARMUP, RANK, ALPHA = 2e-4, 2, 16, 16
FIRST_STEPS = 3  # compilation and the allocator's growth: measured apart


@dataclass
class Stopwatch:
    """When each step ended, and how long the loop waited for its batches."""

    ends: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def step_ended(self) -> None:
        _synchronize()
        self.ends.append(time.perf_counter())

    def watch(self, trainer_class: Any) -> None:
        """Times what a trainer class waits for batches in each step; both sides are watched alike."""
        original = trainer_class.get_batch_samples

        def timed(trainer: Any, *args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            batches = original(trainer, *args, **options)
            self.waits.append(time.perf_counter() - began)
            return batches

        trainer_class.get_batch_samples = timed

    def figures(self) -> dict[str, Any]:
        """Seconds a step after the first ones, the loader's part of them, and the peak memory in MiB."""
        steps = [end - start for start, end in zip(self.ends, self.ends[1:], strict=False)][FIRST_STEPS - 1 :]
        waits = self.waits[FIRST_STEPS : FIRST_STEPS + len(steps)]
        return {
            "first_step_seconds": round(self.ends[0] - self.started, 2),
            "step_seconds": round(statistics.median(steps), 4),
            "slowest_step_seconds": round(max(steps), 4),
            "loader_wait_share": round(sum(waits) / sum(steps), 4),
            "peak_memory_mb": _peak_memory_mb(),
            "losses": [round(loss, 4) for loss in self.losses],
        }


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_memory_mb() -> int:
    from ftproject.engine.training import peak_memory_mb

    return peak_memory_mb()


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    work = json.loads((folder / "work.json").read_text())
    figures = {"ours": ours, "plain": plain}[side](work, folder / side)
    print(json.dumps(figures))


def ours(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The engine as a run process calls it."""
    from ftproject.engine.backends.base import TrainingJob
    from ftproject.engine.configs import parse_training_config, resolve_training_config
    from ftproject.engine.conversations import Conversation, ResolvedConversation
    from ftproject.engine.gpu import device_facts
    from ftproject.engine.training import train

    watch = Stopwatch()
    model = Path(work["model"])
    body = {
        "model_config_data": {
            "model_name": model.name,
            "max_seq_length": 4096,
            "load_in_4bit": work["four_bit"],
            "max_pixels": work["max_pixels"],
        },
        "sft_config": {
            "per_device_train_batch_size": work["batch"],
            "gradient_accumulation_steps": work["accumulation"],
            "learning_rate": RATE,
            "max_steps": work["steps"],
            "warmup_steps": WARMUP,
            "save_steps": 1000,
            "seed": 0,
        },
        "lora_config": {"r": RANK, "lora_alpha": ALPHA},
    }
    device = device_facts()
    effective = resolve_training_config(parse_training_config(body), device, models_dir=model.parent)
    rows = [
        ResolvedConversation(Conversation(index, QUESTION, answer, answer, (path,)), (Path(path),))
        for index, (path, answer) in enumerate(work["rows"])
    ]
    job = TrainingJob(effective, rows, [], adapter_dir=folder / "adapter", work_dir=folder / "work")
    result = train(job, _Listener(watch), device=device)
    return watch.figures() | {"backend": effective.backend, "effective": result.adapter_effective}


class _Listener:
    """Training callbacks that stop the watch."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_phase(self, phase: str, message: str) -> None:
        if phase == "training":  # unsloth, where it is used, is imported by now
            from transformers import Trainer

            self.watch.watch(Trainer)

    def on_progress(self, progress: Any) -> None:
        if progress.loss is not None:
            self.watch.losses.append(progress.loss)
            self.watch.step_ended()

    def on_history(self, steps: Any) -> None:
        raise AssertionError("nothing is resumed here")

    def on_warning(self, message: str) -> None:
        print(message, file=sys.stderr)

    def should_stop(self) -> bool:
        return False


def plain(work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A user's script; the images have the same number of tokens as ours, so nothing is resized by the collator."""
    import importlib.util

    watch = Stopwatch()
    with_unsloth = importlib.util.find_spec("unsloth") is not None and _cuda()
    model, processor, collator = (_with_unsloth if with_unsloth else _with_trl)(work)
    from transformers import Trainer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                watch.losses.append(logs["loss"])
                watch.step_ended()

    class PlainTrainer(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            if _cuda():
                return super().compute_loss(model, inputs, *args, **options)
            return Trainer.compute_loss(self, model, inputs, *args, **options)

    watch.watch(Trainer)
    arguments = SFTConfig(
        output_dir=str(folder / "work"),
        per_device_train_batch_size=work["batch"],
        gradient_accumulation_steps=work["accumulation"],
        learning_rate=RATE,
        max_steps=work["steps"],
        warmup_steps=WARMUP,
        weight_decay=0.01,
        lr_scheduler_type="linear",
        optim="adamw_8bit" if _cuda() else "adamw_torch",
        seed=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=_cuda(),
        use_cpu=not _cuda(),
        gradient_checkpointing=_cuda(),
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    trainer = PlainTrainer(
        model=model,
        args=arguments,
        train_dataset=_dataset(work["rows"], in_messages=with_unsloth),
        processing_class=processor,
        data_collator=collator,
        callbacks=[Ends()],
    )
    trainer.train()
    return watch.figures() | {"backend": "unsloth script" if with_unsloth else "trl script"}


def _cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _with_unsloth(work: dict[str, Any]) -> tuple[Any, Any, Any]:
    from unsloth import FastVisionModel
    from unsloth.trainer import UnslothVisionDataCollator

    model, processor = FastVisionModel.from_pretrained(
        work["model"],
        max_seq_length=4096,
        load_in_4bit=work["four_bit"],
        load_in_16bit=not work["four_bit"],
        use_gradient_checkpointing="unsloth",
        use_exact_model_name=True,
    )
    model = FastVisionModel.get_peft_model(model, r=RANK, lora_alpha=ALPHA, random_state=0)
    FastVisionModel.for_training(model)
    _limit_pixels(processor, work)
    collator = UnslothVisionDataCollator(
        model,
        processor,
        resize="max",
        train_on_responses_only=True,
        instruction_part="<|im_start|>user\n",
        response_part="<|im_start|>assistant\n",
    )
    return model, processor, collator


def _with_trl(work: dict[str, Any]) -> tuple[Any, Any, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from ftproject.engine.configs import LoraSettings
    from ftproject.engine.models import load_base_model, lora_target_regex, torch_device
    from ftproject.engine.processors import load_processor

    set_seed(0)
    model = load_base_model(work["model"], device=torch_device(), load_in_4bit=work["four_bit"])
    targets = lora_target_regex(LoraSettings())
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM")
    processor = load_processor(work["model"])
    _limit_pixels(processor, work)
    return get_peft_model(model, lora), processor, None


def _limit_pixels(processor: Any, work: dict[str, Any]) -> None:
    from ftproject.engine.processors import apply_pixel_rule

    apply_pixel_rule(processor, None, work["max_pixels"])


def _dataset(rows: list[tuple[str, str]], *, in_messages: bool) -> Any:
    from datasets import Dataset

    paths, answers = zip(*rows, strict=True)
    dataset = Dataset.from_dict({"path": paths, "answer": answers})
    dataset.set_transform(partial(_opened, in_messages=in_messages))
    return dataset


def _opened(batch: dict[str, Any], *, in_messages: bool) -> dict[str, list[Any]]:
    from PIL import Image

    images = [[Image.open(path)] for path in batch["path"]]
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    answers = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in batch["answer"]]
    if in_messages:
        return {"images": images, "messages": [[question, answer] for answer in answers]}
    return {
        "images": images,
        "prompt": [[{"role": "user", "content": QUESTION}] for _ in answers],
        "completion": [[{"role": "assistant", "content": text}] for text in batch["answer"]],
    }


if __name__ == "__main__":
    main()
