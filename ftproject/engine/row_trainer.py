"""The trainer class itself, over torch, transformers and TRL; import it inside functions only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_callback import TrainerState
from trl import SFTTrainer

from ftproject.engine.adapters import WEIGHTS_FILE
from ftproject.engine.backends.base import EndedBy, TrainingCallbacks
from ftproject.engine.batches import ROWS_KEY, length_grouped_sampler, require_batch
from ftproject.engine.checkpoints import (
    Checkpoint,
    JobFacts,
    drop_old_checkpoints,
    latest_checkpoint,
    write_checkpoint,
)
from ftproject.engine.loop_guards import (
    EvaluationStoppedError,
    WatchedLosses,
    few_walks,
    garbage_set_aside,
    is_disk_failure,
    not_finite_error,
    random_numbers_kept,
    stopped_before_first_step,
)
from ftproject.engine.loop_state import LoopState

BEST_ADAPTER_FILE = "best_adapter.safetensors"


@dataclass(frozen=True)
class LoopPlan:
    """What the loop needs beyond the model and transformers' arguments.

    `lengths` are tokens of the training rows by position, given only when rows of like lengths share a batch.
    `answer_heldout` scores generated answers with the model as it stands.
    """

    callbacks: TrainingCallbacks
    work_dir: Path
    job: JobFacts
    keep_checkpoints: int
    patience: int | None = None
    lengths: Sequence[int] | None = None
    answer_heldout: Callable[[Any], dict[str, float]] | None = None


class RowTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer that knows the dataset rows of the batch at hand, and whose checkpoints are whole or absent."""

    def __init__(self, *, plan: LoopPlan, **arguments: Any) -> None:
        self.plan = plan
        self.loop = LoopState()
        self.rows_at_hand: tuple[int, ...] = ()
        self.losses = WatchedLosses()
        self.ended_by: EndedBy = "steps"
        self.best_weights: dict[str, Any] | None = None
        self.due_logs: list[dict[str, float]] = []
        self._writing_dir: Path | None = None
        trained = {item: item.data for item in arguments["model"].parameters() if item.requires_grad}
        super().__init__(**arguments)
        # TRL makes the adapter of a quantised base bfloat16, where small steps get lost; Unsloth takes that out of TRL.
        for parameter, data in trained.items():
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        # Unsloth's trainer turns one of these on with mixed precision: an evaluation after the last step would then
        # round the adapter, before it is saved.
        self.args.bf16_full_eval = self.args.fp16_full_eval = False
        self.trained_parameters = [item for item in self.model.parameters() if item.requires_grad]

    # What each step does

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.plan.lengths is None:
            return super()._get_train_sampler(train_dataset)
        rows_of_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return length_grouped_sampler(self.plan.lengths, rows_of_a_step, self.args.seed)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> Any:
        for batch in batch_samples:
            require_batch(batch)
        return super()._get_num_items_in_batch(batch_samples, device)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.rows_at_hand = tuple(inputs.pop(ROWS_KEY, self.rows_at_hand))
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
        self.losses.add(self.state.global_step + 1, self.rows_at_hand, loss)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        return self.accelerator.clip_grad_norm_(self.trained_parameters, self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is not None:
            return grad_norm
        return self.accelerator.clip_grad_norm_(self.trained_parameters, math.inf)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: transformers walks over every parameter of the model for it, in every step."""
        return 0

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, *args: Any, **kwargs: Any) -> None:
        if self.control.should_log or self.control.should_save or self.control.should_evaluate:
            self.losses.check()
            # With float16 an infinite norm is ordinary: the scaler skips that step.
            if grad_norm is not None and not self.args.fp16 and not math.isfinite(float(grad_norm)):
                raise not_finite_error(f"the gradient of step {self.state.global_step}", self.rows_at_hand)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kwargs)

    # Held-out rows

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.plan.callbacks.should_stop():
            raise EvaluationStoppedError
        require_batch(inputs)
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if not math.isfinite(float(loss)):
            raise not_finite_error(f"the held-out loss after step {self.state.global_step}", self.rows_at_hand)
        return loss, logits, labels

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        if self.plan.answer_heldout is not None:
            output.metrics.update(self.plan.answer_heldout(self.model))
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out figures; a stop that is asked for meanwhile ends it at once, without any."""
        try:
            with random_numbers_kept():
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        except EvaluationStoppedError:
            self.loop.evaluation_due = True
            self.control.should_evaluate = False  # else the end of the epoch would try again
            self.stop_with("stop")
            return {}
        self.loop.evaluation_due = False
        return metrics

    def judge_heldout(self, heldout_loss: float) -> None:
        """Keeps the adapter with the lowest loss, and stops when patience is at its end; with early stopping only."""
        if self.plan.patience is None:
            return
        if self.loop.judge(self.state.global_step, heldout_loss):
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in self.weights.items()}
        elif self.loop.out_of_patience(self.plan.patience):
            self.stop_with("patience")

    @cached_property
    def weights(self) -> dict[str, Any]:
        """The adapter's tensors by their names in a file; they are the model's own, so always as they stand."""
        weights: dict[str, Any] = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        return weights

    def stop_with(self, reason: EndedBy) -> None:
        """Lets this step be the last one; its checkpoint is written."""
        self.ended_by = reason
        self.control.should_training_stop = True
        self.control.should_save = True

    def keep_best(self) -> int | None:
        """Puts the adapter with the lowest held-out loss in place; returns its step where it is not the last one."""
        if self.best_weights is None or self.loop.best_step == self.state.global_step:
            return None
        set_peft_model_state_dict(self.model, self.best_weights)
        return self.loop.best_step

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        self._note_losses()
        try:
            write_checkpoint(
                self.plan.work_dir,
                partial(self._fill_checkpoint, model, trial),
                step=step,
                total_steps=self.state.max_steps,
                job=self.plan.job,
                loop=self.loop.to_dict(),
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            if not is_disk_failure(error):
                raise
            self._warn_of_missing_checkpoint(step, error)
        else:
            drop_old_checkpoints(self.plan.work_dir, keep=self.plan.keep_checkpoints)

    def _fill_checkpoint(self, model: Any, trial: Any, folder: Path) -> None:
        self._writing_dir = folder.parent
        try:
            # Past TRL's own, which writes a model card into the run's folder each time.
            super(SFTTrainer, self)._save_checkpoint(model, trial)
        finally:
            self._writing_dir = None
        if self.best_weights is not None:
            save_file(self.best_weights, str(folder / BEST_ADAPTER_FILE))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing_dir or self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The adapter alone: the processor's files are the base model's, the arguments a pickle nobody loads.
        folder = Path(output_dir or self.args.output_dir)
        tensors = {name: tensor.contiguous() for name, tensor in self.weights.items()}
        save_file(tensors, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
        self.model.active_peft_config.save_pretrained(str(folder))

    def _warn_of_missing_checkpoint(self, step: int, error: Exception) -> None:
        last = latest_checkpoint(self.plan.work_dir)
        until = f"until the next one, it could be resumed from {last.name}" if last else "it cannot be resumed yet"
        self.plan.callbacks.on_warning(
            f"the checkpoint of step {step} could not be written ({error}): the run goes on, but {until}"
        )

    def _note_losses(self) -> None:
        self.loop.loss_sum = float(self._tr_loss)
        self.loop.loss_total = float(self._total_loss_scalar)
        self.loop.logged_step = int(self._globalstep_last_logged)

    # From the first or the next step to the end

    def fit(self, checkpoint: Checkpoint | None) -> float:
        """Trains to the end, from a checkpoint of the same job where one is given.

        Returns the mean loss of all steps, those before the checkpoint included.
        """
        with few_walks(self.model, self.trained_parameters), garbage_set_aside():
            return self._fit(checkpoint)

    def _fit(self, checkpoint: Checkpoint | None) -> float:
        if checkpoint is None:
            return float(self.train().training_loss)
        self._take_up(checkpoint)
        if self.loop.evaluation_due:
            self.evaluate()
            self.due_logs = self.state.log_history[-1:]
        if self.ended_by == "stop":
            raise stopped_before_first_step()
        if self.loop.out_of_patience(self.plan.patience):
            self.ended_by = "patience"
        elif self.state.global_step < self.state.max_steps:  # else it died between its last step and its end
            return float(self.train(resume_from_checkpoint=str(checkpoint.path)).training_loss)
        steps: int = max(self.state.global_step, 1)
        return (self.loop.loss_total + self.loop.loss_sum) / steps

    def _take_up(self, checkpoint: Checkpoint) -> None:
        self.loop = LoopState.from_dict(checkpoint.loop)
        best = checkpoint.path / BEST_ADAPTER_FILE
        self.best_weights = load_file(str(best)) if best.is_file() else None
        self._load_from_checkpoint(str(checkpoint.path))
        self.state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))

    def restore_sums(self) -> None:
        """The sums of the loss and the log as they were at the checkpoint; transformers begins the sums anew."""
        self._tr_loss += self.loop.loss_sum
        self._total_loss_scalar = self.loop.loss_total
        self._globalstep_last_logged = self.loop.logged_step
        self.state.log_history += self.due_logs
        self.due_logs = []
