"""What a training run leaves behind: the held-out figures of its adapter, the verified folder, and the result."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ftproject.engine.adapters import save_adapter
from ftproject.engine.backends.base import TrainingResult
from ftproject.engine.checkpoints import drop_old_checkpoints, latest_checkpoint
from ftproject.engine.configs import to_dict
from ftproject.engine.encoding import EncodedRow, build_batch
from ftproject.engine.pixel_cache import PixelCache
from ftproject.engine.processors import pixel_rule_of
from ftproject.engine.trainable_rows import skipped_facts
from ftproject.engine.training_run import Run, TrainableModel

if TYPE_CHECKING:
    from ftproject.engine.row_trainer import RowTrainer


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

    from ftproject.engine.loop_guards import is_disk_failure

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
