"""Builds the TRL trainer as this engine runs it: its arguments, its listeners, and the interval of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftproject.engine.batches import Collate, FailuresAsBatches, row_dataset
from ftproject.engine.device_rules import automatic_save_steps
from ftproject.engine.hyperparameters import SftSettings, TrainingConfig

if TYPE_CHECKING:
    from ftproject.engine.row_trainer import LoopPlan, RowTrainer


def planned_steps(sft: SftSettings, rows: int) -> int:
    """Optimizer steps of a run over so many rows, as transformers' Trainer counts them."""
    if not sft.use_epochs:
        return sft.max_steps
    batches = math.ceil(rows / sft.per_device_train_batch_size)
    return math.ceil(sft.num_train_epochs * math.ceil(batches / sft.gradient_accumulation_steps))


def with_save_steps(config: TrainingConfig, rows: int) -> TrainingConfig:
    """The configuration with its interval of checkpoints decided; with epochs it hangs on the number of rows."""
    save_steps = config.sft.save_steps or automatic_save_steps(planned_steps(config.sft, rows))
    return replace(config, sft=replace(config.sft, save_steps=save_steps))


def trainer_arguments(config: TrainingConfig, work_dir: Path, *, heldout: bool, cuda: bool) -> Any:
    """The SFTConfig of an effective configuration.

    use_cpu, bf16 and fp16 are always explicit (SFTConfig's own defaults refuse a machine without GPU). max_length is
    None because over-long rows were taken out before: cut off, they lose image tokens or the whole answer.
    Checkpoints are rotated and the best adapter is kept by RowTrainer, not by these arguments.
    """
    from trl import SFTConfig

    sft = config.sft
    evaluates = heldout and sft.eval_steps is not None
    return SFTConfig(
        output_dir=str(work_dir),
        per_device_train_batch_size=sft.per_device_train_batch_size,
        per_device_eval_batch_size=sft.per_device_train_batch_size,
        gradient_accumulation_steps=sft.gradient_accumulation_steps,
        learning_rate=sft.learning_rate,
        max_steps=-1 if sft.use_epochs else sft.max_steps,
        num_train_epochs=sft.num_train_epochs,
        warmup_steps=sft.warmup_steps,
        weight_decay=sft.weight_decay,
        lr_scheduler_type=sft.lr_scheduler_type,
        # The same optimizer in one kernel, on a CPU too: 66 tensors one by one took 3 of 88 ms of a tiny step.
        optim="adamw_torch_fused" if sft.optim == "adamw_torch" else sft.optim,
        max_grad_norm=sft.max_grad_norm,
        seed=sft.seed,
        bf16=sft.bf16,
        fp16=sft.fp16,
        use_cpu=not cuda,
        gradient_checkpointing=bool(sft.gradient_checkpointing),
        logging_steps=sft.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=sft.eval_steps if evaluates else None,
        save_strategy="steps",
        save_steps=sft.save_steps or automatic_save_steps(sft.max_steps),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        **loader_arguments(sft, cuda=cuda),
    )


def loader_arguments(sft: SftSettings, *, cuda: bool) -> Mapping[str, Any]:
    """How batches reach the device: forked workers that live on between epochs, and copies beside the computing.

    Forked, because the rows and the pixels prepared so far are then shared; a worker only ever touches the CPU.
    """
    workers = sft.dataloader_num_workers or 0
    return {
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": workers > 0,
        "dataloader_multiprocessing_context": "fork" if workers else None,
        "dataloader_pin_memory": cuda,
        "accelerator_config": {"non_blocking": cuda},
    }


def build_trainer(
    model: Any,
    processor: Any,
    arguments: Any,
    *,
    collator: Collate,
    train_rows: int,
    heldout_rows: int,
    plan: LoopPlan,
    log_dir: Path | None = None,
) -> RowTrainer:
    """A trainer over row positions 0..train_rows-1, held-out rows following; it reports to the plan's callbacks.

    With `log_dir` TensorBoard's event files are written there.
    """
    from transformers.trainer_callback import PrinterCallback

    from ftproject.engine.row_trainer import RowTrainer
    from ftproject.engine.trainer_callbacks import EventFiles, Reporter

    trainer = RowTrainer(
        plan=plan,
        model=model,
        args=arguments,
        train_dataset=row_dataset(train_rows),
        eval_dataset=row_dataset(heldout_rows, first=train_rows) if heldout_rows else None,
        processing_class=processor,
        data_collator=FailuresAsBatches(collator),
    )
    trainer.remove_callback(PrinterCallback)  # what it prints is what the callbacks are told
    trainer.add_callback(Reporter(trainer, plan.callbacks))
    if log_dir is not None:
        trainer.add_callback(EventFiles(log_dir))
    return trainer
