"""The backend on Unsloth's FastVisionModel: CUDA only, 4-bit bases, the same adapter folder as the plain one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftproject.engine.backends.base import TrainingCallbacks, TrainingJob, TrainingResult
from ftproject.engine.batches import ROWS_KEY, Collate
from ftproject.engine.configs import EffectiveConfig, LoraSettings
from ftproject.engine.conversations import ResolvedConversation, messages_of
from ftproject.engine.encoding import ASSISTANT_TURN, EncodedRow
from ftproject.engine.images import open_image
from ftproject.engine.models import model_facts
from ftproject.engine.processors import apply_pixel_rule
from ftproject.engine.resident import ResidentModel
from ftproject.engine.training import TrainableModel, run_training

USER_TURN = "<|im_start|>user\n"  # with ASSISTANT_TURN it bounds what the loss counts
DEFAULT_SEQUENCE_LENGTH = 8192  # for generation, where no run gives one


class UnslothBackend:
    """Loads with FastVisionModel, trains with Unsloth's collator under the same trainer."""

    name = "unsloth"

    def train(self, job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        """Runs the job; raises EngineError with a reason a user can act on."""
        with _scratch_directory(job.work_dir):
            return run_training(job, callbacks, build_trainable)

    def load(
        self,
        model_name: str,
        model_path: str,
        *,
        load_in_4bit: bool | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_seq_length: int | None = None,
    ) -> ResidentModel:
        """Loads a base model for generation."""
        from unsloth import FastVisionModel

        length = max_seq_length or DEFAULT_SEQUENCE_LENGTH
        model, processor = _load(model_path, length, load_in_4bit=load_in_4bit is not False)
        apply_pixel_rule(processor, min_pixels, max_pixels)
        FastVisionModel.for_inference(model)
        return ResidentModel(model, processor, model_name=model_name, device="cuda")


def build_trainable(effective: EffectiveConfig) -> TrainableModel:
    """The base with an untrained adapter on Unsloth's modules, and its collator over the rows."""
    from unsloth import FastVisionModel

    config = effective.config
    model, processor = _load(
        effective.model_path,
        config.max_seq_length,
        load_in_4bit=bool(config.model.load_in_4bit),
        checkpointing=bool(config.sft.gradient_checkpointing),
    )
    apply_pixel_rule(processor, config.model.min_pixels, config.model.max_pixels)
    model = _add_adapter(model, config.lora, config.sft.seed)
    FastVisionModel.for_training(model)

    def collator(rows: Sequence[ResolvedConversation], _: Sequence[EncodedRow]) -> Collate:
        return UnslothRowCollator(model, processor, rows, config.max_seq_length)

    return TrainableModel(model, processor, "cuda", collator)


def _load(path: str, length: int, *, load_in_4bit: bool, checkpointing: bool = False) -> tuple[Any, Any]:
    from unsloth import FastVisionModel

    model_facts(path)
    model, processor = FastVisionModel.from_pretrained(
        path,
        max_seq_length=length,
        load_in_4bit=load_in_4bit,
        use_gradient_checkpointing="unsloth" if checkpointing else False,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return model, processor


def _add_adapter(model: Any, lora: LoraSettings, seed: int) -> Any:
    from unsloth import FastVisionModel

    return FastVisionModel.get_peft_model(
        model,
        finetune_vision_layers=lora.finetune_vision_layers,
        finetune_language_layers=lora.finetune_language_layers,
        finetune_attention_modules=lora.finetune_attention_modules,
        finetune_mlp_modules=lora.finetune_mlp_modules,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias="none",
        random_state=seed,
        use_rslora=False,
        loftq_config=None,
    )


class UnslothRowCollator:
    """Feeds Unsloth's vision collator with the rows at the given positions, loss on the answers only."""

    def __init__(self, model: Any, processor: Any, rows: Sequence[ResolvedConversation], max_seq_length: int) -> None:
        from unsloth.trainer import UnslothVisionDataCollator

        self._rows = rows
        self._collate = UnslothVisionDataCollator(
            model,
            processor,
            max_seq_length=max_seq_length,
            train_on_responses_only=True,
            instruction_part=USER_TURN,
            response_part=ASSISTANT_TURN,
        )

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Any]:
        rows = [self._rows[feature["row"]] for feature in features]
        batch: dict[str, Any] = dict(self._collate([{"messages": _with_open_images(row)} for row in rows]))
        return batch | {ROWS_KEY: [row.conversation.index for row in rows]}


def _with_open_images(row: ResolvedConversation) -> list[dict[str, Any]]:
    """The row's messages with each image cell replaced by the decoded image."""
    paths = iter(row.image_paths)
    messages = messages_of(row.conversation, with_response=True)
    for message in messages:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = open_image(next(paths))
    return messages


@contextmanager
def _scratch_directory(folder: Path) -> Iterator[None]:
    """Works in `folder`, because Unsloth writes unsloth_compiled_cache into the working directory."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
