"""Trains one adapter from a job: the steps that both backends share, from the seed to the verified folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftproject.engine.adapters import require_free_name, versions
from ftproject.engine.backends.base import (
    TrainingCallbacks,
    TrainingError,
    TrainingJob,
    TrainingResult,
)
from ftproject.engine.checkpoints import (
    Checkpoint,
    JobFacts,
    adopt_checkpoint,
    changed_versions,
    continuation_problem,
    latest_checkpoint,
)
from ftproject.engine.configs import DeviceFacts, EffectiveConfig, to_dict
from ftproject.engine.device_rules import warm_up_warnings
from ftproject.engine.gpu import device_facts
from ftproject.engine.heldout_answers import HeldoutAnswers, cut_answers, spread
from ftproject.engine.lean_imports import import_training_libraries
from ftproject.engine.models import is_out_of_memory, use_one_gpu
from ftproject.engine.out_of_memory import memory_advice
from ftproject.engine.trainable_rows import (
    require_rows,
    rows_facts,
    skipped_words,
    usable_rows,
)
from ftproject.engine.trainer import build_trainer, planned_steps, trainer_arguments, with_save_steps
from ftproject.engine.training_outcome import heldout_metrics, peak_memory_mb, save, tokens_per_second
from ftproject.engine.training_run import Run, TrainableModel

if TYPE_CHECKING:
    from ftproject.engine.row_trainer import RowTrainer

NOTHING_HELD_OUT = "no row could be held out although holdout_fraction asks for it: no eval_loss and no early stopping"

__all__ = ["TrainableModel", "latest_checkpoint", "peak_memory_mb", "run_training", "train", "usable_rows"]


def train(job: TrainingJob, callbacks: TrainingCallbacks, *, device: DeviceFacts | None = None) -> TrainingResult:
    """Runs the job on its backend; raises TrainingError, or another EngineError, with a reason to act on."""
    from ftproject.engine.backends import get_backend

    backend = get_backend(job.effective.backend, device or device_facts())
    return backend.train(job, callbacks)


def run_training(
    job: TrainingJob, callbacks: TrainingCallbacks, build: Callable[[EffectiveConfig], TrainableModel]
) -> TrainingResult:
    """Trains with the model that `build` makes; the adapter folder appears complete or not at all."""
    require_free_name(job.adapter_dir)  # known before hours of training, not after
    use_one_gpu()
    run = Run(job, callbacks)
    for warning in job.effective.warnings:
        run.warn(warning)
    source = job.resume_from_checkpoint
    checkpoint = adopt_checkpoint(source, job.work_dir) if source else None
    with _out_of_memory_explained(run):
        callbacks.on_phase("loading_model", f"loading {job.effective.model_name}")
        import_training_libraries()
        seed_everything(run.config.sft.seed)
        trainable = build(job.effective)
        run.image_token_id = trainable.processor.image_token_id
        callbacks.on_phase("preparing_data", f"encoding {len(job.rows)} rows")
        encode_rows(run, trainable.processor)
        trainer = make_trainer(run, trainable, checkpoint)
        callbacks.on_phase("training", f"training on {len(run.rows.encoded)} rows")
        metrics = fit(run, trainer, checkpoint)
    callbacks.on_phase("saving", f"saving {job.adapter_dir.name}")
    return save(run, trainable, trainer, metrics)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch; must come before the adapter is built, whose A matrices are random."""
    from transformers import set_seed

    set_seed(seed)


def encode_rows(run: Run, processor: Any) -> None:
    """Encodes both sides; raises TrainingError when no training row is left or a stop is asked for."""
    limit = run.config.max_seq_length
    run.rows = usable_rows(run.job.rows, processor, limit, on_rows=run.leave_if_stopped)
    require_rows(run.rows)
    run.heldout = usable_rows(run.job.heldout, processor, limit, on_rows=run.leave_if_stopped)
    run.config = with_save_steps(run.config, len(run.rows.encoded))
    sft = run.config.sft
    if sft.use_epochs:
        for warning in warm_up_warnings(sft, planned_steps(sft, len(run.rows.encoded))):
            run.warn(warning)
    if run.skipped:
        run.warn(skipped_words(run.skipped))
    if run.config.options.holdout_fraction and not run.heldout.encoded:
        run.warn(NOTHING_HELD_OUT)


def make_trainer(run: Run, trainable: TrainableModel, checkpoint: Checkpoint | None) -> RowTrainer:
    """The trainer over the usable rows; raises TrainingError checkpoint_mismatch for a checkpoint of another job."""
    from ftproject.engine.row_trainer import LoopPlan

    config, rows, heldout = run.config, run.rows, run.heldout
    facts = JobFacts(
        to_dict(config), run.job.effective.backend, trainable.device, rows_facts(rows, heldout), versions()
    )
    if checkpoint is not None:
        require_continuation(run, checkpoint, facts)
    lengths = [len(row) for row in rows.encoded]
    plan = LoopPlan(
        callbacks=run.callbacks,
        work_dir=run.job.work_dir,
        job=facts,
        keep_checkpoints=config.sft.save_total_limit,
        patience=config.sft.early_stopping_patience if heldout.encoded else None,
        lengths=lengths if config.sft.group_by_length else None,
        answer_heldout=heldout_answers(run, trainable),
    )
    arguments = trainer_arguments(
        config, run.job.work_dir, heldout=bool(heldout.encoded), cuda=trainable.device != "cpu"
    )
    run.trainer = build_trainer(
        trainable.model,
        trainable.processor,
        arguments,
        collator=trainable.collator([*rows.rows, *heldout.rows], [*rows.encoded, *heldout.encoded]),
        train_rows=len(rows.encoded),
        heldout_rows=len(heldout.encoded),
        plan=plan,
        log_dir=log_dir(run.job) if config.sft.report_to == "tensorboard" else None,
    )
    return run.trainer


def log_dir(job: TrainingJob) -> Path:
    return job.log_dir or job.work_dir / "tensorboard"


def require_continuation(run: Run, checkpoint: Checkpoint, facts: JobFacts) -> None:
    problem = continuation_problem(checkpoint, facts)
    if problem is not None:
        raise TrainingError("checkpoint_mismatch", f"{checkpoint.path.name} does not continue this run: {problem}")
    if changes := changed_versions(checkpoint, facts):
        run.warn(f"resumed under other circumstances, so not to the last bit: {'; '.join(changes)}")


def heldout_answers(run: Run, trainable: TrainableModel) -> HeldoutAnswers | None:
    """The scores by generation that eval_generation_rows asks for."""
    sft, heldout = run.config.sft, run.heldout
    if sft.eval_generation_rows is None or not heldout.encoded:
        return None
    places = spread(heldout.encoded, sft.eval_generation_rows)
    rows = [heldout.encoded[place] for place in places]
    if cut := cut_answers(rows):
        run.warn(cut)
    return HeldoutAnswers(
        rows,
        [heldout.rows[place].conversation.ground_truth for place in places],
        trainable.processor,
        batch_size=sft.per_device_train_batch_size,
        generating=trainable.generating,
        should_stop=run.callbacks.should_stop,
    )


def fit(run: Run, trainer: RowTrainer, checkpoint: Checkpoint | None) -> dict[str, float | None]:
    """Trains to the end and leaves the adapter to save in the model; the final figures."""
    began = time.monotonic()
    mean_loss = trainer.fit(checkpoint)
    seconds = time.monotonic() - began
    if trainer.state.global_step >= trainer.state.max_steps:
        trainer.ended_by = "steps"
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics: dict[str, float | None] = {"loss": losses[-1] if losses else None, "train_loss": mean_loss}
    metrics |= heldout_metrics(run, trainer)
    if checkpoint is None:  # the epochs of a resumed run are not all its own
        metrics["tokens_per_second"] = tokens_per_second(trainer, seconds, run.rows.encoded)
    return metrics


@contextmanager
def _out_of_memory_explained(run: Run) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = memory_advice(run.config, run.failing_rows(), image_token_id=run.image_token_id)
        raise TrainingError("out_of_memory", f"the device ran out of memory: {advice}") from error
