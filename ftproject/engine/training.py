"""Trains one adapter from a job: the steps that both backends share, from the seed to the verified folder."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftproject.engine.adapters import require_free_name, save_adapter, versions
from ftproject.engine.backends.base import (
    SkippedRow,
    TrainingCallbacks,
    TrainingError,
    TrainingJob,
    TrainingResult,
)
from ftproject.engine.batches import Collate
from ftproject.engine.checkpoints import (
    Checkpoint,
    JobFacts,
    adopt_checkpoint,
    changed_versions,
    continuation_problem,
    drop_old_checkpoints,
    latest_checkpoint,
)
from ftproject.engine.configs import DeviceFacts, EffectiveConfig, to_dict
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.encoding import EncodedRow, build_batch
from ftproject.engine.gpu import device_facts
from ftproject.engine.heldout_answers import Generating, HeldoutAnswers, evaluation_mode, spread
from ftproject.engine.lean_imports import import_training_libraries
from ftproject.engine.models import is_out_of_memory, use_one_gpu
from ftproject.engine.out_of_memory import memory_advice
from ftproject.engine.pixel_cache import PixelCache
from ftproject.engine.processors import pixel_rule_of
from ftproject.engine.trainable_rows import (
    UsableRows,
    require_rows,
    rows_facts,
    skipped_facts,
    skipped_words,
    usable_rows,
)
from ftproject.engine.trainer import build_trainer, trainer_arguments, with_save_steps

if TYPE_CHECKING:
    from ftproject.engine.row_trainer import RowTrainer

__all__ = ["Collate", "TrainableModel", "latest_checkpoint", "run_training", "train", "usable_rows"]


@dataclass(frozen=True)
class TrainableModel:
    """What a backend hands to the trainer: a model with an untrained adapter, and how its batches are made.

    `collator` takes the rows in both forms, training rows first, and returns the batch builder over positions.
    `generating` puts the model into the mode in which it answers, and back.
    """

    model: Any
    processor: Any
    device: str
    collator: Callable[[Sequence[ResolvedConversation], Sequence[EncodedRow]], Collate]
    generating: Generating = evaluation_mode


@dataclass
class Run:
    """One training run on its way: what was asked for and what has become of it so far."""

    job: TrainingJob
    callbacks: TrainingCallbacks
    started: float = field(default_factory=time.monotonic)
    warnings: list[str] = field(default_factory=list)
    rows: UsableRows = field(default_factory=UsableRows)
    heldout: UsableRows = field(default_factory=UsableRows)
    trainer: RowTrainer | None = None
    image_token_id: int = -1
    best_step: int | None = None

    def __post_init__(self) -> None:
        self.config = self.job.effective.config

    @property
    def skipped(self) -> list[SkippedRow]:
        return [*self.rows.skipped, *self.heldout.skipped]

    def failing_rows(self) -> list[EncodedRow]:
        """The rows of the batch at hand; none before the first."""
        at_hand = set(self.trainer.rows_at_hand) if self.trainer else set()
        return [row for row in (*self.rows.encoded, *self.heldout.encoded) if row.index in at_hand]

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.callbacks.on_warning(message)

    def leave_if_stopped(self, _: int = 0) -> None:
        if self.callbacks.should_stop():
            raise TrainingError("stopped", "stopped before the first step: no adapter was made")


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
    if run.skipped:
        run.warn(skipped_words(run.skipped))


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
    return HeldoutAnswers(
        [heldout.encoded[place] for place in places],
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


def heldout_metrics(run: Run, trainer: RowTrainer) -> dict[str, float | None]:
    """The held-out figures of the adapter that is saved; null where a stop left no time to measure them."""
    run.best_step = trainer.keep_best()
    if run.heldout.encoded and run.config.sft.eval_steps is None and trainer.ended_by != "stop":
        trainer.evaluate()
    step = run.best_step or trainer.state.global_step
    measured = [entry for entry in trainer.state.log_history if "eval_loss" in entry and entry["step"] == step]
    names = ["eval_loss", *(["eval_exact_match", "eval_token_f1"] if run.config.sft.eval_generation_rows else [])]
    return {name: measured[-1].get(name) if measured else None for name in names}


def tokens_per_second(trainer: RowTrainer, seconds: float, encoded: Sequence[EncodedRow]) -> float | None:
    """Tokens of the rows trained on, padding not counted, over the time of all steps."""
    epochs = float(trainer.state.epoch or 0)
    return round(epochs * sum(map(len, encoded)) / seconds, 1) if seconds and epochs else None


def save(run: Run, trainable: TrainableModel, trainer: RowTrainer, metrics: dict[str, float | None]) -> TrainingResult:
    """Writes the adapter with its provenance, and says what became of the run."""
    job, state = run.job, trainer.state
    duration, peak = time.monotonic() - run.started, peak_memory_mb()
    outcome = {
        "metrics": metrics,
        "steps": state.global_step,
        "total_steps": state.max_steps,
        "stopped_early": state.global_step < state.max_steps,
        "ended_by": trainer.ended_by,
        "best_step": run.best_step,
        "duration_seconds": round(duration, 3),
        "peak_memory_mb": peak,
    }
    if run.best_step is not None:
        run.warn(f"the adapter is that of step {run.best_step}, whose held-out loss was the lowest")
    effective = save_in_the_room_there_is(
        run,
        lambda: save_adapter(
            trainable.model,
            trainable.processor,
            job.adapter_dir,
            base_model_name=job.effective.model_name,
            facts={**outcome, **job.provenance, **provenance_of(run, trainable)},
            probe=probe_batch(trainable, run.rows.encoded[0]),
        ),
    )
    if not effective:
        run.warn("the adapter does not change the model's answers (it was trained too little or not at all)")
    return TrainingResult(
        adapter_path=job.adapter_dir,
        steps=state.global_step,
        total_steps=state.max_steps,
        stopped_early=state.global_step < state.max_steps,
        adapter_effective=effective,
        metrics=metrics,
        skipped_rows=run.skipped,
        warnings=run.warnings,
        duration_seconds=duration,
        peak_memory_mb=peak,
        checkpoint_path=latest_checkpoint(job.work_dir),
        ended_by=trainer.ended_by,
        best_step=run.best_step,
    )


def save_in_the_room_there_is(run: Run, write: Callable[[], bool]) -> bool:
    """Where the disk is too full for the adapter, all checkpoints but the newest make room for it."""
    from safetensors import SafetensorError

    from ftproject.engine.row_trainer import is_disk_failure

    try:
        return write()
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_failure(error):
            raise
        run.warn(f"the adapter could not be written ({error}): older checkpoints were removed to make room for it")
    drop_old_checkpoints(run.job.work_dir, keep=1)
    return write()


def provenance_of(run: Run, trainable: TrainableModel) -> Mapping[str, Any]:
    """What the adapter was made from; no path of this machine. The split holds the rows that were really used."""
    effective = run.job.effective
    return {
        "backend": effective.backend,
        "device": trainable.device,
        "config": to_dict(run.config),
        "warnings": run.warnings,
        "seed": run.config.sft.seed,
        "pixel_rule": asdict(pixel_rule_of(trainable.processor)),
        "rows": {
            "trained": len(run.rows.encoded),
            "heldout": len(run.heldout.encoded),
            "skipped": len(run.skipped),
        },
        "split": {"trained_rows": run.rows.numbers, "heldout_rows": run.heldout.numbers},
        **skipped_facts(run.skipped),
    }


def probe_batch(trainable: TrainableModel, row: EncodedRow) -> dict[str, Any]:
    """One row as model inputs on the model's device, to compare logits with."""
    batch = build_batch(
        [row],
        PixelCache(trainable.processor),
        image_token_id=trainable.processor.image_token_id,
        pad_token_id=trainable.processor.tokenizer.pad_token_id,
        padding_side="right",
        with_labels=False,
    )
    return {name: tensor.to(trainable.device) for name, tensor in batch.items()}


def peak_memory_mb() -> int:
    """The most memory used so far in MiB: of the CUDA device where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated()) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@contextmanager
def _out_of_memory_explained(run: Run) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = memory_advice(run.config, run.failing_rows(), image_token_id=run.image_token_id)
        raise TrainingError("out_of_memory", f"the device ran out of memory: {advice}") from error
