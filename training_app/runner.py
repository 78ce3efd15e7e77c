"""What a training run process does: rows, split, training, and the adapter's row in one step with the run's end."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets_app.preparation import PreparedRow, prepare_rows
from ftproject.core.errors import ProductError
from ftproject.core.storage import run_dir
from ftproject.engine.backends.base import EngineError, TrainingJob, TrainingResult
from ftproject.engine.configs import EffectiveConfig, TrainingConfig, TrainingOptions, from_dict
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.splits import decode_ranges, encode_ranges, split_conversations
from ftproject.engine.training import train
from training_app.adapter_services import complete_training, new_adapter_dir
from training_app.configuration import resolve_config
from training_app.models import TrainingRun
from training_app.persistence import persistently
from training_app.progress import RunReporter, StoppedBeforeFirstStepError, summarise_reasons
from training_app.services import require_free_disk


class RunFailedError(ProductError):
    """A run that cannot go on, with the sentence for its `error`."""

    default_code = "training_failed"


@dataclass(frozen=True)
class SplitRows:
    """The rows of a run by what happens to them; `skipped` maps row numbers to reasons."""

    train: list[ResolvedConversation]
    heldout: list[ResolvedConversation]
    skipped: dict[int, str]


def execute_training(job: TrainingRun, should_stop: Callable[[], bool]) -> None:
    """Runs one claimed training run to its end; whatever goes wrong is raised, and ends the row in `error`."""
    reporter = RunReporter(job, should_stop)
    reporter.tell_status()
    try:
        effective, _ = resolve_config(from_dict(job.config), backend=job.backend)
        require_free_disk(model_name=effective.model_name)
        rows = read_rows(job, reporter, effective.config)
        result = train(training_job(job, effective, rows), reporter)
    except EngineError as exc:
        raise RunFailedError(capitalised(exc.message), code=exc.code) from exc
    finally:
        reporter.flush()
    finish_training(job, result)


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
    note_rows(job, rows)
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
    )


def training_job(job: TrainingRun, effective: EffectiveConfig, rows: SplitRows) -> TrainingJob:
    return TrainingJob(
        effective=effective,
        rows=rows.train,
        heldout=rows.heldout,
        adapter_dir=new_adapter_dir(),
        work_dir=run_dir(job.KIND, job.pk) / "checkpoints",
        provenance=provenance(job),
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
        total_steps=result.total_steps,
        eta_seconds=0.0,
        trained_rows=encode_ranges(trained),
        heldout_rows=encode_ranges(heldout),
        num_train_rows=len(trained),
        num_heldout_rows=len(heldout),
        num_skipped_rows=(job.num_skipped_rows or 0) + len(too_long),
    )
    persistently(completion)
    if not result.stopped_early:  # a stopped run keeps its last checkpoint, to be taken up again
        shutil.rmtree(run_dir(job.KIND, job.pk) / "checkpoints", ignore_errors=True)


def run_metrics(result: TrainingResult) -> dict[str, Any]:
    return {
        **result.metrics,
        "steps": result.steps,
        "duration_seconds": round(result.duration_seconds, 3),
        "peak_memory_mb": result.peak_memory_mb,
        "adapter_effective": result.adapter_effective,
    }


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
