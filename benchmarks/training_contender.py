"""One side of the training benchmark, alone in a process: `python -m benchmarks.training_contender ours|trl FOLDER`.

Both sides train the rows of FOLDER/work.json with the same settings and print their figures as one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

QUESTION = "Which digit is shown in the image?"
BATCH, RATE, WARMUP, RANK, ALPHA = 16, 4e-3, 5, 16, 32


@dataclass
class Clock:
    """CPU and wall seconds of the process at named moments, and its peak memory in MiB until then."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def mark(self, name: str) -> None:
        self.cpu.setdefault(name, time.process_time())
        self.wall.setdefault(name, time.monotonic() - self.started)
        self.peak_mb.setdefault(name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    work = json.loads((folder / "work.json").read_text())
    clock = Clock()
    losses = {"ours": train_ours, "trl": train_trl}[side](work, folder / side, clock)
    clock.mark("end")
    print(json.dumps({"clock": asdict(clock), "losses": losses}))


def train_ours(work: dict[str, Any], folder: Path, clock: Clock) -> list[float]:
    """The engine as a run process calls it: checkpoints, verification and provenance included."""
    from ftproject.engine.backends.base import TrainingJob
    from ftproject.engine.configs import DeviceFacts, parse_training_config, resolve_training_config
    from ftproject.engine.conversations import Conversation, ResolvedConversation
    from ftproject.engine.lean_imports import import_training_libraries
    from ftproject.engine.training import train

    import_training_libraries()
    clock.mark("imported")
    listener = Listener(clock)
    sft = {
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "learning_rate": RATE,
        "max_steps": work["steps"],
        "warmup_steps": WARMUP,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "bf16": False,
        "seed": work["seed"],
    }
    body = {"sft_config": sft, "lora_config": {"r": RANK, "lora_alpha": ALPHA}}
    device = DeviceFacts(cuda=False, name=None, memory_total_mb=None, bf16=False)
    effective = resolve_training_config(parse_training_config(body), device, models_dir=folder / "models")
    rows = [
        ResolvedConversation(Conversation(index, QUESTION, answer, answer, (path,)), (Path(path),))
        for index, (path, answer) in enumerate(work["rows"])
    ]
    job = TrainingJob(effective, rows, [], adapter_dir=folder / "adapter", work_dir=folder / "work")
    train(job, listener, device=device)
    return listener.losses


class Listener:
    """Training callbacks that take the times of the phases."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.losses: list[float] = []

    def on_phase(self, phase: str, message: str) -> None:
        self.clock.mark({"preparing_data": "loaded", "training": "ready", "saving": "trained"}.get(phase, phase))

    def on_progress(self, progress: Any) -> None:
        self.clock.mark("first_step")
        if progress.loss is not None:
            self.losses.append(progress.loss)

    def on_history(self, steps: Any) -> None:
        raise AssertionError("nothing is resumed here")

    def on_warning(self, message: str) -> None:
        print(message, file=sys.stderr)

    def should_stop(self) -> bool:
        return False


def train_trl(work: dict[str, Any], folder: Path, clock: Clock) -> list[float]:
    """What a user of TRL writes: SFTTrainer with its own vision collator; only its CUDA-only loss is replaced."""
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from PIL import Image
    from transformers import Trainer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from ftproject.engine.configs import TINY_MODEL_PATH, LoraSettings
    from ftproject.engine.models import lora_target_regex
    from ftproject.engine.processors import load_processor

    class PlainTrainer(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            return Trainer.compute_loss(self, model, inputs, return_outputs=return_outputs, **kwargs)

    class Times(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.mark("first_step")

    model_class = transformers.Qwen3VLForConditionalGeneration
    clock.mark("imported")
    torch.set_num_threads(1)
    transformers.set_seed(work["seed"])
    model = model_class.from_pretrained(TINY_MODEL_PATH, dtype=torch.float32)
    # Its processor without torchvision, which the ordinary one wants on this machine.
    processor = load_processor(str(TINY_MODEL_PATH))
    targets = lora_target_regex(LoraSettings())
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    clock.mark("loaded")
    paths, answers = zip(*work["rows"], strict=True)
    dataset = Dataset.from_dict({"path": paths, "answer": answers})
    dataset.set_transform(partial(as_conversations, open_image=Image.open))
    arguments = SFTConfig(
        output_dir=str(folder / "work"),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        learning_rate=RATE,
        max_steps=work["steps"],
        warmup_steps=WARMUP,
        weight_decay=0.0,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        seed=work["seed"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        max_length=None,
    )
    trainer = PlainTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=processor, callbacks=[Times()]
    )
    clock.mark("ready")
    trainer.train()
    clock.mark("trained")
    trainer.save_model(str(folder / "adapter"))
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def as_conversations(batch: dict[str, Any], open_image: Callable[[str], Any]) -> dict[str, list[Any]]:
    """Rows in TRL's prompt-completion form, images opened when the row is asked for."""
    return {
        "images": [[open_image(path)] for path in batch["path"]],
        "prompt": [[{"role": "user", "content": QUESTION}] for _ in batch["path"]],
        "completion": [[{"role": "assistant", "content": answer}] for answer in batch["answer"]],
    }


if __name__ == "__main__":
    main()
