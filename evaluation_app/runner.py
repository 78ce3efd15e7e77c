"""Executes one evaluation run in its run process: reads rows, loads, answers those without a sample yet, sums up."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from django.conf import settings

from datasets_app.preparation import PreparedRow, image_warnings
from evaluation_app.loading import BaseModel, same_base
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.progress import ProgressReporter
from evaluation_app.reuse import EarlierAnswer, EarlierAnswers
from evaluation_app.scoring import SampleWriter, labels_of, spellings_of, summarise
from evaluation_app.services import publish_status
from evaluation_app.splits import rows_in_scope, seen_rows
from evaluation_app.windows import iter_ground_truths, iter_windows
from ftproject.core.errors import ProductError
from ftproject.core.jobs import Job, requeue_job
from ftproject.core.persistence import persistently
from ftproject.core.tasks import stopped_by_shutdown
from ftproject.engine.backends.base import EngineError, Generation, LoadedModel
from ftproject.engine.configs import EVALUATION_GENERATION, parse_generation_params
from ftproject.engine.conversations import ResolvedConversation

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
    """One run from claim to its last sample: rows come a window at a time, the model is loaded when there is one."""

    def __init__(self, job: EvaluationRun, should_stop: ShouldStop) -> None:
        self.job, self.should_stop = job, should_stop
        self.said_at = 0.0
        self.warnings_before = list(job.warnings)
        self.lost: Counter[str] = Counter()

    def run(self) -> None:
        self.enter(Job.Status.LOADING_MODEL, f"Importing what {self.job.model_name} needs")
        with BaseModel(self.job) as base:
            self.enter(Job.Status.PREPARING_DATA, "Preparing rows and images")
            self.scope = rows_in_scope(self.job)
            persistently(lambda: self.job.note(total=len(self.scope)))
            self.progress = ProgressReporter(self.job)
            labels = labels_of(self.job, iter_ground_truths(self.job, self.scope))
            self.spellings = spellings_of(self.job, labels, iter_ground_truths(self.job, self.scope))
            self.writer = SampleWriter(self.job, labels, seen_rows(self.job))
            with closing(self.rows_to_answer(base)) as windows:
                first = next(windows, None)
                self.check_stop_with_rows_left()
                if first is not None:
                    self.answer(self.load(base), chain([first], windows))
        self.check_stop_with_rows_left()
        self.progress.flush()

    def enter(self, status: str, message: str) -> None:
        self.check_stop()
        if not persistently(lambda: self.job.advance(status, message=message)):
            raise EvaluationStoppedError
        persistently(lambda: publish_status(self.job))

    def check_stop(self) -> None:
        if self.should_stop():
            raise EvaluationStoppedError

    def check_stop_with_rows_left(self) -> None:
        """A stop after the last row spoils nothing."""
        if self.progress.done < len(self.scope):
            self.check_stop()

    def load(self, base: BaseModel) -> LoadedModel:
        if not base.is_held():
            self.enter(Job.Status.LOADING_MODEL, f"Loading {self.job.model_name}")
        return base.load()

    @property
    def adapter_path(self) -> Path | None:
        return self.job.adapter.path if self.job.adapter else None

    def rows_to_answer(self, base: BaseModel) -> Generator[list[ResolvedConversation], None, None]:
        """Windows of rows for the model; skipped rows and answers known from earlier are stored on the way."""
        windows = iter_windows(
            self.job, self.scope, should_stop=self.should_stop, lost=self.lost, on_row=self.show_preparation
        )
        earlier: EarlierAnswers | None = None
        for window in windows:
            if earlier is None:
                self.check_base(base.facts)
                self.earlier = earlier = EarlierAnswers(self.job, base.facts)
            usable = [row.resolved for row in window if not row.skipped]
            known = persistently(partial(earlier.find, usable))
            self.store(window, known)
            if missing := [row for row in usable if row.conversation.index not in known]:
                yield missing

    def check_base(self, facts: dict[str, Any]) -> None:
        """A resumed run must not mix the answers of two models."""
        before = self.job.engine_facts
        if before and self.progress.done:
            if before["weights"] != facts["weights"]:
                raise EvaluationFailedError(
                    f"The files of {self.job.model_name} are not those that the run's {self.progress.done} answers "
                    "came from.",
                    code="base_model_changed",
                    hint="Start a new run.",
                )
            if before != facts:
                self.warn("The run went on with other package versions or settings than it began with.")
        persistently(lambda: self.job.note(engine_facts=facts))

    def store(self, window: Sequence[PreparedRow], known: Mapping[int, EarlierAnswer]) -> None:
        """Samples of the skipped rows, and of those that an earlier run has answered."""
        samples = [self.writer.skipped(row.resolved.conversation, reason_of(row)) for row in window if row.skipped]
        for row in window:
            if (found := known.get(row.index)) is not None:
                sample = self.sample(row.resolved, found.answer)
                sample.reused = True
                samples.append(sample)
        changes: dict[str, Any] = {"warnings": self.all_warnings()}
        if known:
            runs = {found.run_id for found in known.values()}
            changes["num_reused"] = self.job.num_reused + len(known)
            changes["reused_from"] = sorted({*self.job.reused_from, *runs})
        self.progress.add(samples, **changes)

    def sample(
        self, row: ResolvedConversation, answer: Generation, probabilities: Mapping[str, float] | None = None
    ) -> Sample:
        sample = self.writer.answered(row.conversation, answer, probabilities)
        sample.answer_key = self.earlier.key_of(row)
        return sample

    def warn(self, message: str) -> None:
        self.warnings_before.append(message)
        persistently(lambda: self.job.note(warnings=self.all_warnings()))

    def all_warnings(self) -> list[str]:
        return list(dict.fromkeys([*self.warnings_before, *image_warnings(self.lost)]))

    def show_preparation(self, ready: int) -> None:
        if self.job.status == Job.Status.PREPARING_DATA and time.monotonic() - self.said_at >= MESSAGE_SECONDS:
            self.said_at = time.monotonic()
            message = f"Preparing rows and images: {ready} of {len(self.scope)}"
            persistently(lambda: self.job.note(message=message))

    def answer(self, model: LoadedModel, windows: Iterable[list[ResolvedConversation]]) -> None:
        from ftproject.engine.generation import answer_windows

        def on_batch(done: list[tuple[ResolvedConversation, Generation]]) -> None:
            scored = self.label_probabilities(model, [row for row, _ in done])
            self.progress.add([self.sample(*pair, found) for pair, found in zip(done, scored, strict=True)])

        def on_failed(row: ResolvedConversation, reason: str) -> None:
            self.progress.add([self.writer.skipped(row.conversation, reason)])

        self.enter(Job.Status.EVALUATING, f"Answering {len(self.scope)} rows")
        self.progress.begin()
        outcome = answer_windows(
            model,
            windows,
            parse_generation_params(self.job.generation_params, EVALUATION_GENERATION),
            adapter=self.adapter_path,
            batch_size=settings.EVALUATION_BATCH_SIZE,
            on_batch=on_batch,
            on_failed=on_failed,
            should_stop=self.should_stop,
        )
        if outcome.stopped:
            raise EvaluationStoppedError
        if outcome.out_of_memory:
            self.warn(f"{outcome.out_of_memory} rows did not fit into memory, not even alone; they count as skipped.")

    def label_probabilities(
        self, model: LoadedModel, rows: Sequence[ResolvedConversation]
    ) -> Sequence[Mapping[str, float] | None]:
        """Of each row, how probable each label is as its answer; null unless the run asks for confidence."""
        if not self.spellings:
            return [None] * len(rows)
        from ftproject.engine.label_scores import score_labels

        return score_labels(model, rows, self.spellings, adapter=self.adapter_path, batch_size=len(rows))


def reason_of(row: PreparedRow) -> str:
    return row.skipped_reason or "skipped"


def shares_base(done: Job, waiting: Job) -> bool:
    """Whether the process of an ended run can go on with a waiting job: the same base, loaded in the same way."""
    return isinstance(done, EvaluationRun) and isinstance(waiting, EvaluationRun) and same_base(done, waiting)


def complete(job: EvaluationRun) -> None:
    figures, warnings = persistently(lambda: summarise(job))
    if figures["num_samples"] != job.total:
        raise RuntimeError(f"{figures['num_samples']} samples are stored for {job.total} rows")
    warnings = [*job.warnings, *warnings]
    end = partial(job.finish, Job.Status.COMPLETED, message="Completed", eta_seconds=None, warnings=warnings, **figures)
    persistently(end)


def give_back_or_end(job: EvaluationRun) -> None:
    done = persistently(job.samples.count)
    persistently(lambda: job.note(eta_seconds=None))
    if stopped_by_shutdown(job) and requeue_job(
        job, message=f"Interrupted by a shutdown after {done} of {job.total} rows"
    ):
        publish_status(job)
        return
    reason = f"Stopped after {done} of {job.total} rows."
    persistently(lambda: job.finish(Job.Status.ERROR, error=reason, stopped_early=True))
