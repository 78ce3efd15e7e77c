"""Trains one adapter from a job: the steps that both backends share, from the seed to the verified folder."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftproject.engine.adapters import require_free_name, save_adapter
from ftproject.engine.backends.base import (
    RowError,
    SkippedRow,
    TrainingCallbacks,
    TrainingError,
    TrainingJob,
    TrainingResult,
)
from ftproject.engine.configs import DeviceFacts, EffectiveConfig, to_dict
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.encoding import EncodedRow, PixelCache, RowEncoder, build_batch
from ftproject.engine.gpu import device_facts
from ftproject.engine.models import is_out_of_memory, use_one_gpu
from ftproject.engine.processors import pixel_rule_of
from ftproject.engine.trainer import build_trainer, trainer_arguments

SKIPPED_ROWS_IN_PROVENANCE = 1000
Collate = Callable[[Sequence[dict[str, int]]], dict[str, Any]]


@dataclass(frozen=True)
class TrainableModel:
    """What a backend hands to the trainer: a model with an untrained adapter, and how its batches are made.

    `collator` takes the rows in both forms, training rows first, and returns the batch builder over positions.
    """

    model: Any
    processor: Any
    device: str
    collator: Callable[[Sequence[ResolvedConversation], Sequence[EncodedRow]], Collate]


@dataclass(frozen=True)
class UsableRows:
    """Rows that fit, in both forms and the same order, and those that do not."""

    rows: list[ResolvedConversation]
    encoded: list[EncodedRow]
    skipped: list[SkippedRow]


def train(job: TrainingJob, callbacks: TrainingCallbacks, *, device: DeviceFacts | None = None) -> TrainingResult:
    """Runs the job on its backend; raises TrainingError, or another EngineError, with a reason to act on."""
    from ftproject.engine.backends import get_backend

    backend = get_backend(job.effective.backend, device or device_facts())
    return backend.train(job, callbacks)


def run_training(
    job: TrainingJob, callbacks: TrainingCallbacks, build: Callable[[EffectiveConfig], TrainableModel]
) -> TrainingResult:
    """Trains with the model that `build` makes; the adapter folder appears complete or not at all."""
    started = time.monotonic()
    require_free_name(job.adapter_dir)  # known before hours of training, not after
    use_one_gpu()
    for warning in job.effective.warnings:
        callbacks.on_warning(warning)
    with _out_of_memory_named():
        callbacks.on_phase("loading_model", f"loading {job.effective.model_name}")
        seed_everything(job.effective.config.sft.seed)
        trainable = build(job.effective)
        callbacks.on_phase("preparing_data", f"encoding {len(job.rows)} rows")
        rows, heldout = prepare_rows(job, trainable.processor)
        _report_skipped([*rows.skipped, *heldout.skipped], callbacks)
        trainer = _trainer(job, trainable, rows, heldout, callbacks)
        callbacks.on_phase("training", f"training on {len(rows.encoded)} rows")
        output = trainer.train(
            resume_from_checkpoint=str(job.resume_from_checkpoint) if job.resume_from_checkpoint else None
        )
        metrics = _metrics(trainer, output, evaluates=bool(heldout.encoded))
        if job.resume_from_checkpoint is None:  # the epochs of a resumed run are not all its own
            metrics["tokens_per_second"] = _tokens_per_second(trainer, output, rows.encoded)
    callbacks.on_phase("saving", f"saving {job.adapter_dir.name}")
    return _save(job, trainable, trainer, metrics, rows, heldout, time.monotonic() - started, callbacks)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch; must come before the adapter is built, whose A matrices are random."""
    from transformers import set_seed

    set_seed(seed)


def prepare_rows(job: TrainingJob, processor: Any) -> tuple[UsableRows, UsableRows]:
    """The training rows and the held-out rows that can be used; raises TrainingError when no training row is left."""
    limit = job.effective.config.max_seq_length
    rows = usable_rows(job.rows, processor, limit)
    if not rows.encoded:
        reasons = "; ".join(f"row {row.index}: {row.reason}" for row in rows.skipped[:3])
        raise TrainingError("no_trainable_rows", f"no row can be trained on ({reasons or 'the dataset is empty'})")
    return rows, usable_rows(job.heldout, processor, limit)


def usable_rows(rows: Sequence[ResolvedConversation], processor: Any, max_seq_length: int) -> UsableRows:
    """Encodes rows and sets apart those without an answer, with an unusable image, or longer than the limit.

    Nothing is ever cut: a cut row loses image tokens (an error) or its whole answer (a loss of NaN).
    """
    encoder = RowEncoder(processor)
    usable = UsableRows([], [], [])
    for row in rows:
        encoded, reason = _encode_or_reason(encoder, row, max_seq_length)
        if encoded is None:
            usable.skipped.append(SkippedRow(row.conversation.index, reason))
        else:
            usable.rows.append(row)
            usable.encoded.append(encoded)
    return usable


def _encode_or_reason(
    encoder: RowEncoder, row: ResolvedConversation, max_seq_length: int
) -> tuple[EncodedRow | None, str]:
    if not row.conversation.response.strip():
        return None, "the response is empty"
    try:
        encoded = encoder.encode(row, with_response=True)
    except RowError as error:
        return None, error.message
    if len(encoded) > max_seq_length:
        return None, f"{len(encoded)} tokens, more than max_seq_length {max_seq_length}"
    return encoded, ""


def _report_skipped(skipped: Sequence[SkippedRow], callbacks: TrainingCallbacks) -> None:
    if skipped:
        examples = "; ".join(f"row {row.index}: {row.reason}" for row in skipped[:3])
        callbacks.on_warning(f"{len(skipped)} rows skipped ({examples})")


def _trainer(
    job: TrainingJob,
    trainable: TrainableModel,
    rows: UsableRows,
    heldout: UsableRows,
    callbacks: TrainingCallbacks,
) -> Any:
    config = job.effective.config
    arguments = trainer_arguments(config, job.work_dir, heldout=bool(heldout.encoded), cuda=trainable.device != "cpu")
    return build_trainer(
        trainable.model,
        trainable.processor,
        arguments,
        collator=trainable.collator([*rows.rows, *heldout.rows], [*rows.encoded, *heldout.encoded]),
        train_rows=len(rows.encoded),
        heldout_rows=len(heldout.encoded),
        callbacks=callbacks,
        sft=config.sft,
    )


def _metrics(trainer: Any, output: Any, *, evaluates: bool) -> dict[str, float | None]:
    """Final and mean training loss, and the held-out loss of the adapter as it will be saved."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    evaluation = trainer.evaluate() if evaluates else {}
    return {
        "loss": losses[-1] if losses else None,
        "train_loss": float(output.training_loss),
        "eval_loss": evaluation.get("eval_loss"),
    }


def _tokens_per_second(trainer: Any, output: Any, encoded: Sequence[EncodedRow]) -> float | None:
    """Tokens of the rows trained on, padding not counted, over the time of all steps."""
    seconds = float(output.metrics.get("train_runtime") or 0)
    epochs = float(trainer.state.epoch or 0)
    return round(epochs * sum(map(len, encoded)) / seconds, 1) if seconds and epochs else None


def _save(
    job: TrainingJob,
    trainable: TrainableModel,
    trainer: Any,
    metrics: dict[str, float | None],
    rows: UsableRows,
    heldout: UsableRows,
    duration: float,
    callbacks: TrainingCallbacks,
) -> TrainingResult:
    state = trainer.state
    skipped = [*rows.skipped, *heldout.skipped]
    peak = peak_memory_mb()
    stopped_early = state.global_step < state.max_steps
    facts = {
        **provenance_of(job, trainable, skipped),
        "rows": {"trained": len(rows.encoded), "heldout": len(heldout.encoded), "skipped": len(skipped)},
        "metrics": metrics,
        "steps": state.global_step,
        "total_steps": state.max_steps,
        "stopped_early": stopped_early,
        "duration_seconds": round(duration, 3),
        "peak_memory_mb": peak,
        **job.provenance,
    }
    effective = save_adapter(
        trainable.model,
        trainable.processor,
        job.adapter_dir,
        base_model_name=job.effective.model_name,
        facts=facts,
        probe=probe_batch(trainable, rows.encoded[0]),
    )
    warnings = list(job.effective.warnings)
    if not effective:
        warnings.append("the adapter does not change the model's answers (it was trained too little or not at all)")
        callbacks.on_warning(warnings[-1])
    return TrainingResult(
        adapter_path=job.adapter_dir,
        steps=state.global_step,
        total_steps=state.max_steps,
        stopped_early=stopped_early,
        adapter_effective=effective,
        metrics=metrics,
        skipped_rows=skipped,
        warnings=warnings,
        duration_seconds=duration,
        peak_memory_mb=peak,
        checkpoint_path=latest_checkpoint(job.work_dir),
    )


def provenance_of(job: TrainingJob, trainable: TrainableModel, skipped: Sequence[SkippedRow]) -> Mapping[str, Any]:
    """What the adapter was made from; no path of this machine."""
    effective = job.effective
    return {
        "backend": effective.backend,
        "device": trainable.device,
        "config": to_dict(effective.config),
        "warnings": effective.warnings,
        "seed": effective.config.sft.seed,
        "pixel_rule": asdict(pixel_rule_of(trainable.processor)),
        "skipped_rows": [asdict(row) for row in skipped[:SKIPPED_ROWS_IN_PROVENANCE]],
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


def latest_checkpoint(work_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, to resume from."""
    found = [
        (int(folder.name.rpartition("-")[2]), folder)
        for folder in work_dir.glob("checkpoint-*")
        if folder.name.rpartition("-")[2].isdigit() and (folder / "trainer_state.json").is_file()
    ]
    return max(found)[1] if found else None


def peak_memory_mb() -> int:
    """The most memory used so far in MiB: of the CUDA device where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated()) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@contextmanager
def _out_of_memory_named() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "lower per_device_train_batch_size (raise gradient_accumulation_steps), max_seq_length or max_pixels"
        raise TrainingError("out_of_memory", f"the device ran out of memory; {advice}") from error
