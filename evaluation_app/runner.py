"""Executes one evaluation run in its run process: load, prepare, answer the rows that have no sample yet, sum up."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from django.conf import settings

from datasets_app.preparation import PreparedRow, prepare_rows
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.progress import ProgressReporter
from evaluation_app.scoring import SampleWriter, summarise
from evaluation_app.services import publish_status
from evaluation_app.splits import rows_in_scope, seen_rows
from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job, requeue_job
from ftproject.core.storage import models_dir
from ftproject.core.tasks import drain_flag
from ftproject.engine.backends import get_backend
from ftproject.engine.backends.base import EngineError, Generation, LoadedModel, SkippedRow
from ftproject.engine.classification import known_labels
from ftproject.engine.configs import EVALUATION_GENERATION, parse_generation_params, resolve_model
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.gpu import device_facts
from training_app.persistence import persistently

logger = logging.getLogger(__name__)

ShouldStop = Callable[[], bool]
# Rows come by the thousand; a write for each would take longer than the rows.
MESSAGE_SECONDS = 0.5


class EvaluationStoppedError(Exception):
    """Somebody asked the run to stop: a user, or a server that shuts down."""


class EvaluationFailedError(ProductError):
    """A run that cannot go on, with the sentence for its `error`."""

    default_code = "evaluation_failed"


def execute_evaluation(job: EvaluationRun, should_stop: ShouldStop) -> None:
    """Runs the job to its end; a shutdown puts it back into the queue, and its samples are not computed again."""
    try:
        RunningEvaluation(job, should_stop).run()
    except EvaluationStoppedError:
        give_back_or_end(job)
    except EngineError as exc:
        raise EvaluationFailedError(exc.message[:1].upper() + exc.message[1:], code=exc.code) from exc
    else:
        complete(job)


class RunningEvaluation:
    def __init__(self, job: EvaluationRun, should_stop: ShouldStop) -> None:
        self.job, self.should_stop = job, should_stop
        self.said_at = 0.0

    def run(self) -> None:
        self.enter(Job.Status.LOADING_MODEL, f"Loading {self.job.model_name}")
        model = self.load_model()
        self.enter(Job.Status.PREPARING_DATA, "Preparing rows and images")
        progress = ProgressReporter(self.job)
        missing = self.prepare()
        writer = SampleWriter(self.job, self.labels(missing), seen_rows(self.job))
        skipped = [writer.skipped(row.resolved.conversation, reason_of(row)) for row in missing if row.skipped]
        progress.add(skipped)
        self.enter(Job.Status.EVALUATING, f"Answering {self.job.total} rows")
        self.answer(model, [row.resolved for row in missing if not row.skipped], writer, progress)
        progress.flush()

    def enter(self, status: str, message: str) -> None:
        self.check_stop()
        if not persistently(lambda: self.job.advance(status, message=message)):
            raise EvaluationStoppedError
        persistently(lambda: publish_status(self.job))

    def check_stop(self) -> None:
        if self.should_stop():
            raise EvaluationStoppedError

    def load_model(self) -> LoadedModel:
        run, device = self.job, device_facts()
        name, path = resolve_model(run.model_name, device, models_dir=models_dir())
        backend = get_backend(run.backend or settings.BACKEND, device, model_name=name)
        model = backend.load(name, path, **run.model_settings)
        if self.adapter_path is not None:
            model.ensure_adapter(self.adapter_path)
        return model

    @property
    def adapter_path(self) -> Path | None:
        return self.job.adapter.path if self.job.adapter else None

    def prepare(self) -> list[PreparedRow]:
        """The rows in scope that have no sample yet, images resolved."""
        scope = rows_in_scope(self.job)
        stored = set(self.job.samples.values_list("index", flat=True))
        prepared = prepare_rows(
            dataset=self.job.dataset,
            mapping=self.job.mapping,
            limit=scope[-1] + 1 if scope else 0,
            indices=set(scope) - stored,
            should_stop=self.should_stop,
            on_progress=self.show_preparation,
        )
        self.check_stop()
        warnings = list(dict.fromkeys([*self.job.warnings, *prepared.warnings]))
        self.job.note(total=len(scope), warnings=warnings)
        return prepared.rows

    def show_preparation(self, done: int, total: int) -> None:
        if time.monotonic() - self.said_at >= MESSAGE_SECONDS:
            self.said_at = time.monotonic()
            self.job.note(message=f"Preparing rows and images: {done} of {total}")

    def labels(self, missing: Sequence[PreparedRow]) -> list[str]:
        """The labels of all evaluated rows, those of an earlier attempt included."""
        if self.job.eval_mode != EvaluationRun.EvalMode.CLASSIFICATION:
            return []
        stored = self.job.samples.filter(skipped=False).values_list("ground_truth", flat=True)
        return known_labels([*stored, *(row.resolved.conversation.ground_truth for row in missing if not row.skipped)])

    def answer(
        self,
        model: LoadedModel,
        rows: Sequence[ResolvedConversation],
        writer: SampleWriter,
        progress: ProgressReporter,
    ) -> None:
        from ftproject.engine.generation import evaluate_rows

        def on_batch(done: list[tuple[ResolvedConversation, Generation]]) -> None:
            progress.add([writer.answered(row.conversation, answer) for row, answer in done])

        outcome = evaluate_rows(
            model,
            rows,
            parse_generation_params(self.job.generation_params, EVALUATION_GENERATION),
            adapter=self.adapter_path,
            batch_size=settings.EVALUATION_BATCH_SIZE,
            on_batch=on_batch,
            should_stop=self.should_stop,
        )
        if outcome.stopped:
            raise EvaluationStoppedError
        progress.add(unanswerable(rows, outcome.failed, writer))


def reason_of(row: PreparedRow) -> str:
    return row.skipped_reason or "skipped"


def unanswerable(
    rows: Sequence[ResolvedConversation], failed: Sequence[SkippedRow], writer: SampleWriter
) -> list[Sample]:
    by_index = {row.conversation.index: row.conversation for row in rows}
    return [writer.skipped(by_index[item.index], item.reason) for item in failed]


def complete(job: EvaluationRun) -> None:
    figures, warnings = summarise(job)
    if figures["num_samples"] != job.total:
        raise RuntimeError(f"{figures['num_samples']} samples are stored for {job.total} rows")
    warnings = [*job.warnings, *warnings]
    end = partial(job.finish, Job.Status.COMPLETED, message="Completed", eta_seconds=None, warnings=warnings, **figures)
    persistently(end)


def stopped_by_shutdown(job: EvaluationRun) -> bool:
    """A user's stop came before the server's; with a bare SIGTERM there is none in the row."""
    job.refresh_from_db(fields=["stop_requested_at"])
    try:
        draining_since = drain_flag().stat().st_mtime
    except FileNotFoundError:
        return False
    return job.stop_requested_at is None or job.stop_requested_at.timestamp() >= draining_since


def give_back_or_end(job: EvaluationRun) -> None:
    done = job.samples.count()
    job.note(eta_seconds=None)
    if stopped_by_shutdown(job) and requeue_job(
        job, message=f"Interrupted by a shutdown after {done} of {job.total} rows"
    ):
        publish_status(job)
        return
    job.finish(Job.Status.ERROR, error=f"Stopped after {done} of {job.total} rows.", stopped_early=True)
