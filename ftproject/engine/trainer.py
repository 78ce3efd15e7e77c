"""The TRL trainer as this engine runs it: rows by index, a loss that must be finite, progress, and a graceful stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ftproject.engine.backends.base import TrainingCallbacks, TrainingError, TrainingProgress
from ftproject.engine.encoding import EncodedRow, PixelCache, build_batch
from ftproject.engine.hyperparameters import SftSettings, TrainingConfig

ROWS_KEY = "row_indices"


class RowCollator:
    """Builds right-padded training batches from row positions, and says which dataset rows are in each."""

    def __init__(self, rows: Sequence[EncodedRow], processor: Any) -> None:
        self._rows = rows
        self._pixels = PixelCache(processor)
        self._image_token_id = processor.image_token_id
        self._pad_token_id = processor.tokenizer.pad_token_id

    def __call__(self, features: Sequence[dict[str, int]]) -> dict[str, Any]:
        rows = [self._rows[feature["row"]] for feature in features]
        batch = build_batch(
            rows,
            self._pixels,
            image_token_id=self._image_token_id,
            pad_token_id=self._pad_token_id,
            padding_side="right",
            with_labels=True,
        )
        return batch | {ROWS_KEY: [row.index for row in rows]}


def row_dataset(count: int, first: int = 0) -> Any:
    """A datasets.Dataset of row positions: SFTTrainer takes no list, and images must be opened lazily."""
    from datasets import Dataset

    return Dataset.from_dict({"row": list(range(first, first + count))})


def trainer_arguments(config: TrainingConfig, work_dir: Path, *, heldout: bool, cuda: bool) -> Any:
    """The SFTConfig of an effective configuration.

    use_cpu, bf16 and fp16 are always explicit (SFTConfig's own defaults refuse a machine without GPU). max_length is
    None because over-long rows were taken out before: cut off, they lose image tokens or the whole answer.
    """
    from trl import SFTConfig

    sft = config.sft
    evaluates = heldout and sft.eval_steps is not None
    keep_best = evaluates and sft.early_stopping_patience is not None
    # The best adapter can only be restored where a checkpoint stands beside each held-out loss.
    save_steps = sft.eval_steps if keep_best else sft.save_steps
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
        optim=sft.optim,
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
        save_strategy="no" if save_steps is None else "steps",
        save_steps=save_steps or 500,
        save_total_limit=sft.save_total_limit,
        load_best_model_at_end=keep_best,
        metric_for_best_model="eval_loss" if keep_best else None,
        greater_is_better=False if keep_best else None,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )


def build_trainer(
    model: Any,
    processor: Any,
    arguments: Any,
    *,
    collator: Callable[[Sequence[dict[str, int]]], dict[str, Any]],
    train_rows: int,
    heldout_rows: int,
    callbacks: TrainingCallbacks,
    sft: SftSettings,
) -> Any:
    """An SFTTrainer over row positions 0..train_rows-1, held-out rows following; it reports to `callbacks`."""
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback

    trainer_callbacks: list[Any] = [_reporter(callbacks)]
    if sft.early_stopping_patience is not None and arguments.eval_strategy != "no":
        trainer_callbacks.append(EarlyStoppingCallback(sft.early_stopping_patience))
    trainer = _trainer_class()(
        model=model,
        args=arguments,
        train_dataset=row_dataset(train_rows),
        eval_dataset=row_dataset(heldout_rows, first=train_rows) if heldout_rows else None,
        processing_class=processor,
        data_collator=collator,
        callbacks=trainer_callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # what it prints is what the callbacks are told
    return trainer


def _trainer_class() -> type[Any]:
    import torch
    from transformers import Trainer
    from trl import SFTTrainer

    class RowTrainer(SFTTrainer):  # type: ignore[misc]
        """SFTTrainer that knows the rows of the batch at hand."""

        rows_at_hand: tuple[int, ...] = ()

        def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
            self.rows_at_hand = tuple(inputs.pop(ROWS_KEY, ()))
            prepared: dict[str, Any] = super()._prepare_inputs(inputs)
            return prepared

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            # TRL's own loss is a fused Triton kernel: without CUDA it fails with "0 active drivers ([])".
            compute = super().compute_loss if torch.cuda.is_available() else partial(Trainer.compute_loss, self)
            return compute(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            loss = super().training_step(model, inputs, num_items_in_batch)
            if not torch.isfinite(loss).all():
                raise not_finite_error(self.state.global_step + 1, self.rows_at_hand)
            return loss

    return RowTrainer


def not_finite_error(step: int, rows: Sequence[int]) -> TrainingError:
    """The error of a loss that is NaN or infinite, naming the dataset rows of its batch."""
    names = ", ".join(str(row) for row in rows)
    message = f"the loss of step {step} is not finite; its rows are {names}. Lower the learning rate or check them."
    return TrainingError("loss_not_finite", message)


def _reporter(callbacks: TrainingCallbacks) -> Any:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc]
        """Passes progress out and the wish to stop in."""

        started_at = 0.0
        first_step = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started_at = time.monotonic()
            self.first_step = state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if callbacks.should_stop():
                control.should_training_stop = True
                control.should_save = True  # a checkpoint, so that the run can be resumed
            if not control.should_log:
                callbacks.on_progress(self._progress(state, {}))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if {"loss", "eval_loss"} & logs.keys():
                callbacks.on_progress(self._progress(state, logs))

        def _progress(self, state: Any, logs: dict[str, float]) -> TrainingProgress:
            done = state.global_step - self.first_step
            elapsed = time.monotonic() - self.started_at
            return TrainingProgress(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=state.epoch,
                loss=logs.get("loss"),
                learning_rate=logs.get("learning_rate"),
                grad_norm=logs.get("grad_norm"),
                eval_loss=logs.get("eval_loss"),
                eta_seconds=elapsed / done * (state.max_steps - state.global_step) if done else None,
            )

    return Reporter()
