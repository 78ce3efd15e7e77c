"""The backend on plain transformers, PEFT and TRL: any device, and what the tests really train with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftproject.engine.backends.base import TrainingCallbacks, TrainingJob, TrainingResult
from ftproject.engine.batches import Collate, PositionIndex, RowCollator
from ftproject.engine.configs import EffectiveConfig, LoraSettings, four_bit
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.encoding import EncodedRow
from ftproject.engine.models import load_base_model, lora_target_regex, torch_device, training_dtype
from ftproject.engine.processors import load_processor
from ftproject.engine.resident import ResidentModel
from ftproject.engine.training import TrainableModel, run_training


class TransformersBackend:
    """Loads with from_pretrained, adapts with PEFT, trains with TRL."""

    name = "transformers"

    def train(self, job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        """Runs the job; raises EngineError with a reason a user can act on."""
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
        device = torch_device()
        quantise = four_bit(load_in_4bit, model_name, model_path, cuda=device != "cpu")
        return ResidentModel(
            load_base_model(model_path, device=device, load_in_4bit=quantise),
            load_processor(model_path, min_pixels=min_pixels, max_pixels=max_pixels),
            model_name=model_name,
            device=device,
            own_loop=True,
        )


def build_trainable(effective: EffectiveConfig) -> TrainableModel:
    """The base with an untrained adapter; random numbers must be seeded before."""
    config, device = effective.config, torch_device()
    model = load_base_model(
        effective.model_path,
        device=device,
        load_in_4bit=bool(config.model.load_in_4bit),
        dtype=training_dtype(device, bf16=config.sft.bf16, fp16=config.sft.fp16),
    )
    processor = load_processor(
        effective.model_path, min_pixels=config.model.min_pixels, max_pixels=config.model.max_pixels
    )

    def collator(_: Sequence[ResolvedConversation], encoded: Sequence[EncodedRow]) -> Collate:
        workers, positions = config.sft.dataloader_num_workers or 0, PositionIndex(model.model.get_rope_index)
        return RowCollator(encoded, processor, workers=workers, positions=positions)

    return TrainableModel(add_adapter(model, config.lora), processor, device, collator)


def add_adapter(model: Any, lora: LoraSettings) -> Any:
    """The model with a fresh LoRA on the modules that the four flags choose."""
    from peft import LoraConfig, get_peft_model

    # No prepare_model_for_kbit_training: it would turn the unquantised vision tower into float32, and what else it
    # does (inputs that require gradients) the trainer does itself.
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=lora_target_regex(lora),
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )
