"""The reporter: fast steps cost few writes, and none of them is lost."""

import math

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from datasets_app.models import Dataset
from ftproject.engine.backends.base import TrainingProgress
from tests.training_app.world import Api, claimed
from training_app import progress as reporting
from training_app.models import TrainingMetric, TrainingRun
from training_app.progress import RunReporter, summarise_reasons


class Clock:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    return clock


@pytest.fixture
def reporter(api: Api, dataset: Dataset) -> RunReporter:
    api.post("/api/training/start", {})
    return RunReporter(claimed(TrainingRun.objects.get()), lambda: False)


def steps_written() -> list[int]:
    return list(TrainingMetric.objects.values_list("step", flat=True))


def test_steps_of_a_slow_run_are_written_at_once(reporter: RunReporter, clock: Clock) -> None:
    for step in (1, 2, 3):
        reporter.on_progress(TrainingProgress(step, 9, loss=1.0))
        assert steps_written()[-1] == step
        clock.now += 1.0


def test_fast_steps_are_written_five_times_a_second_and_none_is_lost(reporter: RunReporter, clock: Clock) -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        for step in range(1, 201):
            reporter.on_progress(TrainingProgress(step, 200, loss=1.0))
            clock.now += 0.01
    assert steps_written() == list(range(1, 201))
    batches = [query for query in queries.captured_queries if "training_app_trainingmetric" in query["sql"].lower()]
    assert len(batches) <= 12, "2 s of steps at 100/s"


def test_the_last_step_is_written_whatever_the_clock_says(reporter: RunReporter, clock: Clock) -> None:
    reporter.on_progress(TrainingProgress(1, 3, loss=1.0))
    reporter.on_progress(TrainingProgress(2, 3, loss=1.0))
    assert steps_written() == [1]
    reporter.on_progress(TrainingProgress(3, 3, loss=1.0))
    assert steps_written() == [1, 2, 3]


def test_a_continuation_learns_the_steps_that_a_killed_run_never_wrote(reporter: RunReporter, clock: Clock) -> None:
    TrainingMetric.objects.create(run=reporter.run, step=1, loss=4.0)
    TrainingMetric.objects.create(run=reporter.run, step=2, loss=3.0)
    reporter.on_history(
        [
            TrainingProgress(1, 9, loss=4.0),
            TrainingProgress(2, 9, loss=3.0, eval_loss=2.5),
            TrainingProgress(3, 9, loss=2.0),
            TrainingProgress(4, 9, loss=math.nan),
        ]
    )
    written = list(TrainingMetric.objects.values_list("step", "loss", "eval_loss"))
    assert written == [(1, 4.0, None), (2, 3.0, 2.5), (3, 2.0, None), (4, None, None)]


def test_a_new_phase_writes_what_is_pending(reporter: RunReporter, clock: Clock) -> None:
    reporter.on_progress(TrainingProgress(1, 9, loss=1.0))
    reporter.on_progress(TrainingProgress(2, 9, loss=1.0))
    reporter.on_phase("saving", "saving the adapter")
    assert steps_written() == [1, 2]
    assert TrainingRun.objects.get().message == "Saving the adapter"


def test_the_heldout_loss_of_a_step_joins_its_metric(reporter: RunReporter, clock: Clock) -> None:
    reporter.on_progress(TrainingProgress(5, 9, loss=1.0, learning_rate=0.1))
    clock.now += 1
    reporter.on_progress(TrainingProgress(5, 9, eval_loss=2.0))
    metric = TrainingMetric.objects.get()
    assert (metric.loss, metric.eval_loss, metric.learning_rate) == (1.0, 2.0, 0.1)


def test_a_step_without_a_heldout_loss_keeps_the_last_one_on_the_run(reporter: RunReporter, clock: Clock) -> None:
    reporter.on_progress(TrainingProgress(5, 9, loss=1.0, eval_loss=2.0))
    clock.now += 1
    reporter.on_progress(TrainingProgress(6, 9, loss=0.5))
    run = TrainingRun.objects.get()
    assert (run.loss, run.eval_loss) == (0.5, 2.0)


def test_the_status_never_goes_back(reporter: RunReporter) -> None:
    for phase in ("preparing_data", "loading_model", "training", "preparing_data"):
        reporter.on_phase(phase, phase)
    assert TrainingRun.objects.get().status == "training"


def test_a_warning_said_twice_stands_once(reporter: RunReporter) -> None:
    reporter.on_warning("too long")
    reporter.on_warning("too long")
    assert TrainingRun.objects.get().warnings.count("too long") == 1


def test_reasons_are_counted_and_the_first_rows_named() -> None:
    reasons = {index: "empty" for index in range(8)} | {20: "broken"}
    assert summarise_reasons(reasons) == [
        "8 rows skipped: empty (rows 0, 1, 2, 3, 4, ...)",
        "1 row skipped: broken (row 20)",
    ]
