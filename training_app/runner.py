"""What a training run process does: rows, split, training, and the adapter's row in one step with the run's end."""

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets_app.preparation import PreparedRow, prepare_rows
from ftproject.core.errors import ProductError
from ftproject.core.jobs import requeue_job
from ftproject.core.persistence import persistently
from ftproject.core.storage import run_dir
from ftproject.core.tasks import stopped_by_shutdown
from ftproject.engine.adapters import versions
from ftproject.engine.backends.base import EngineError, TrainingJob, TrainingResult
from ftproject.engine.configs import EffectiveConfig, TrainingConfig, TrainingOptions, from_dict
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.splits import decode_ranges, encode_ranges, split_conversations
from ftproject.engine.training import train
from training_app.adapter_services import complete_training, new_adapter_dir
from training_app.checkpoints import checkpoints_dir, free_checkpoints, newest_checkpoint, reserve_path, was_stopped
from training_app.configuration import resolve_config
from training_app.continuation import checkpoint_to_resume, origin_of, require_same_rows, rows_digest
from training_app.disk import Reserve, require_free_disk, says_disk_full
from training_app.models import TrainingRun
from training_app.progress import RunReporter, StoppedBeforeFirstStepError, summarise_reasons
from training_app.prompt_stop import leaves_before_first_step

logger = logging.getLogger(__name__)

Guard = Callable[[RunReporter], AbstractContextManager[object]]


class RunFailedError(ProductError):
    """A run that cannot go on, with the sentence for its `error`."""

    default_code = "training_failed"


@dataclass(frozen=True)
class SplitRows:
    """The rows of a run by what happens to them; `skipped` maps row numbers to reasons."""

    train: list[ResolvedConversation]
    heldout: list[ResolvedConversation]
    skipped: dict[int, str]


def execute_in_own_process(job: TrainingRun, should_stop: Callable[[], bool]) -> None:
    """The same where the process is the run's own: a stop ends even the import of a library or a loader at once."""
    execute_training(job, should_stop, guard=leaves_before_first_step)


def execute_training(job: TrainingRun, should_stop: Callable[[], bool], *, guard: Guard = nullcontext) -> None:
    """Runs one claimed training run to its end; whatever goes wrong is raised, and ends the row in `error`."""
    reporter = RunReporter(job, should_stop)
    if origin := origin_of(job):
        logger.info("%s", origin)
        reporter.say(origin)
    reporter.tell_status()
    run_dir(job.KIND, job.pk)
    reserve = Reserve(reserve_path(job))
    try:
        with guard(reporter):
            result = train_rows(job, reporter)
        finish_training(job, result)
    except Exception as exc:
        reserve.free()
        reporter.flush()
        if went_back_to_queue(job, exc):
            return
        if plain := plain_reason(job, exc):
            raise plain from exc
        raise
    finally:
        reserve.free()


def went_back_to_queue(job: TrainingRun, exc: Exception) -> bool:
    """A shutdown before the first step has nothing to save: the run begins again at the next start of the server."""
    if getattr(exc, "code", "") != "stopped" or not stopped_by_shutdown(job):
        return False
    return requeue_job(job, message="Waiting for the next start of the server")


def plain_reason(job: TrainingRun, exc: Exception) -> RunFailedError | None:
    """The failure in words for the user, where its own are none."""
    if says_disk_full(exc):
        return disk_was_full(job)
    if getattr(exc, "code", "") == "stopped" and job.resumed_from_id is not None:
        detail = f"Stopped before it went on: run {job.resumed_from_id} can be resumed again from step"
        return RunFailedError(f"{detail} {job.resumed_step}.", code="stopped")
    if isinstance(exc, EngineError):
        return RunFailedError(capitalised(exc.message), code=exc.code)
    return None


def train_rows(job: TrainingRun, reporter: RunReporter) -> TrainingResult:
    try:
        effective, _ = resolve_config(from_dict(job.config), backend=job.backend)
        require_free_disk(effective)
        checkpoint = checkpoint_to_resume(job)
        rows = read_rows(job, reporter, effective.config)
        return train(training_job(job, effective, rows, checkpoint), reporter)
    finally:
        reporter.flush()


def disk_was_full(job: TrainingRun) -> RunFailedError:
    kept = newest_checkpoint(job)
    saved = f"The checkpoint of step {kept.step} is kept." if kept else "It had not saved a checkpoint yet."
    hint = f"Free space in the data directory, then {'resume it' if kept else 'start it again'}."
    return RunFailedError(f"The disk is full: the run could not write its files. {saved}", code="disk_full", hint=hint)


def read_rows(job: TrainingRun, reporter: RunReporter, config: TrainingConfig) -> SplitRows:
    """The rows, their images fetched, split by the hash of what they show; the split is written on the run."""
    reporter.say("Reading the rows and their images")
    prepared = prepare_rows(
        dataset=job.dataset,
        mapping=job.mapping,
        limit=None,
        should_stop=reporter.should_stop,
        on_progress=reporter.on_rows_read,
    )
    reporter.leave_if_stopped()
    rows = split_rows(prepared.rows, config.options)
    for warning in [*prepared.warnings, *summarise_reasons(rows.skipped)]:
        reporter.on_warning(warning)
    if not rows.train:
        raise nothing_to_train_on(rows)
    require_same_rows(job, rows.train, rows.heldout)
    persistently(lambda: note_rows(job, rows))
    return rows


def split_rows(prepared: Sequence[PreparedRow], options: TrainingOptions) -> SplitRows:
    """Skipped rows are on neither side; rows that share an image are on the same."""
    usable = [row.resolved for row in prepared if not row.skipped]
    held = split_conversations([row.conversation for row in usable], options)
    return SplitRows(
        train=[row for row, out in zip(usable, held, strict=True) if not out],
        heldout=[row for row, out in zip(usable, held, strict=True) if out],
        skipped={row.index: row.skipped_reason or "skipped" for row in prepared if row.skipped},
    )


def nothing_to_train_on(rows: SplitRows) -> RunFailedError:
    reasons = "; ".join(summarise_reasons(rows.skipped)[:3]) or "the dataset is empty"
    hint = "Set another mapping, or fill the empty cells."
    return RunFailedError(f"No row can be trained on: {reasons}.", code="no_usable_rows", hint=hint)


def note_rows(job: TrainingRun, rows: SplitRows) -> None:
    job.note(
        trained_rows=encode_ranges(row.conversation.index for row in rows.train),
        heldout_rows=encode_ranges(row.conversation.index for row in rows.heldout),
        num_train_rows=len(rows.train),
        num_heldout_rows=len(rows.heldout),
        num_skipped_rows=len(rows.skipped),
        rows_sha256=rows_digest(rows.train, rows.heldout),
        versions=versions(),
    )


def training_job(
    job: TrainingRun, effective: EffectiveConfig, rows: SplitRows, checkpoint: Path | None = None
) -> TrainingJob:
    # What was changed or left out before the engine began belongs into provenance.json as well.
    said = list(dict.fromkeys([*job.warnings, *effective.warnings]))
    return TrainingJob(
        effective=replace(effective, warnings=said),
        rows=rows.train,
        heldout=rows.heldout,
        adapter_dir=new_adapter_dir(),
        work_dir=checkpoints_dir(job),
        log_dir=run_dir(job.KIND, job.pk) / "tensorboard",
        provenance=provenance(job),
        resume_from_checkpoint=checkpoint,
    )


def provenance(job: TrainingRun) -> dict[str, Any]:
    """What the adapter was made from, as far as the engine does not know it."""
    dataset, mapping = job.dataset, job.mapping
    columns = (
        "version",
        "prompt_column",
        "response_column",
        "ground_truth_column",
        "image_url_columns",
        "image_separator",
        "mandatory_columns",
    )
    return {
        "run_id": job.pk,
        "resumed_from": {"run_id": job.resumed_from_id, "step": job.resumed_step} if job.resumed_from_id else None,
        "dataset": {"filename": dataset.filename, "sha256": dataset.sha256, "num_rows": dataset.num_rows},
        "mapping": {name: getattr(mapping, name) for name in columns},
        "split": {"trained_rows": job.trained_rows, "heldout_rows": job.heldout_rows},
        "requested_config": job.requested_config,
    }


def finish_training(job: TrainingRun, result: TrainingResult) -> None:
    """Ends the run with its adapter; rows that the engine found too long count as skipped, not as trained on."""
    if result.steps == 0:
        shutil.rmtree(result.adapter_path, ignore_errors=True)
        raise StoppedBeforeFirstStepError
    too_long = {row.index for row in result.skipped_rows}
    trained = [index for index in decode_ranges(job.trained_rows) if index not in too_long]
    heldout = [index for index in decode_ranges(job.heldout_rows) if index not in too_long]
    completion = partial(
        complete_training,
        run=job,
        folder=result.adapter_path,
        effective=result.adapter_effective,
        metrics=run_metrics(result),
        stopped_early=result.stopped_early,
        current_step=result.steps,
        best_step=result.best_step,
        total_steps=result.total_steps,
        eta_seconds=0.0,
        trained_rows=encode_ranges(trained),
        heldout_rows=encode_ranges(heldout),
        num_train_rows=len(trained),
        num_heldout_rows=len(heldout),
        num_skipped_rows=(job.num_skipped_rows or 0) + len(too_long),
    )
    persistently(completion)
    if not was_stopped(job):  # a stopped run keeps its checkpoints, to be taken up again
        persistently(lambda: free_checkpoints(job))


def run_metrics(result: TrainingResult) -> dict[str, Any]:
    return {
        **result.metrics,
        "steps": result.steps,
        "duration_seconds": round(result.duration_seconds, 3),
        "peak_memory_mb": result.peak_memory_mb,
        "adapter_effective": result.adapter_effective,
        "ended_by": result.ended_by,
    }


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
