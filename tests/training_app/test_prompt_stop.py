"""A stop before the first step ends the run at once, whatever it is deep in; from then on a stop saves."""

import time
from collections.abc import Callable

import pytest

from datasets_app.models import Dataset
from ftproject.core.jobs import stop_job
from ftproject.core.run_context import execute
from ftproject.core.tasks import drain_flag
from ftproject.engine.backends.base import TrainingCallbacks, TrainingError, TrainingJob, TrainingResult
from ftproject.engine.backends.fake import FakeBackend
from tests.training_app.world import (
    TEN_STEPS,
    Api,
    claimed,
    die_after,
    queued,
    run_process,
    train_with,
    work_queue,
)
from training_app.models import TrainingRun
from training_app.runner import execute_in_own_process

LONG = 30.0


def asked_after(seconds: float) -> Callable[[], bool]:
    asked = time.monotonic() + seconds
    return lambda: time.monotonic() >= asked


def in_own_process(run: TrainingRun, should_stop: Callable[[], bool]) -> float:
    """The run as its process does it; the seconds that it took."""
    claimed(run)
    began = time.monotonic()
    execute(lambda job, _: execute_in_own_process(job, should_stop), run.KIND, run.pk, run.claim)
    run.refresh_from_db()
    return time.monotonic() - began


def loads_long(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
    callbacks.on_phase("loading_model", "loading")
    time.sleep(LONG)
    raise AssertionError("the stop must end the loading")


def test_a_stop_while_the_model_loads_ends_the_run_at_once(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_with(monkeypatch, loads_long)
    run = queued(api)
    assert in_own_process(run, asked_after(0.5)) < LONG / 3
    assert (run.status, run.error) == ("error", "Stopped before the first step: no adapter was made.")


def test_code_that_swallows_exceptions_does_not_swallow_the_stop(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    swallowed = []

    def swallows(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        try:
            time.sleep(LONG)
        except Exception as exc:
            swallowed.append(exc)
        return loads_long(job, callbacks)

    train_with(monkeypatch, swallows)
    run = queued(api)
    assert in_own_process(run, asked_after(0.5)) < LONG / 3
    assert swallowed
    assert "Stopped before the first step" in (run.error or "")


def test_once_the_training_has_begun_a_stop_saves(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FakeBackend.train

    def slow(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        for phase in ("loading_model", "preparing_data", "training"):
            callbacks.on_phase(phase, phase)
        time.sleep(1.5)
        callbacks.on_phase = lambda *_: None  # type: ignore[method-assign]  # they came already
        return plain(FakeBackend(), job, callbacks)

    train_with(monkeypatch, slow)
    run = queued(api, sft_config={"max_steps": 50})
    in_own_process(run, asked_after(1.0))
    assert (run.status, run.stopped_early, run.current_step) == ("completed", True, 1)


def test_a_continuation_that_is_stopped_before_it_went_on_says_that_nothing_is_lost(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die_after(patch, 6)
        dead = run_process(queued(api, **TEN_STEPS))
    run_id = api.post(f"/api/training/runs/{dead.pk}/resume").json()["run_id"]
    run = TrainingRun.objects.get(pk=run_id)
    with monkeypatch.context() as patch:
        train_with(patch, loads_long)
        in_own_process(run, asked_after(0.5))
    assert run.error == f"Stopped before it went on: run {dead.pk} can be resumed again from step 4."
    assert api.get(f"/api/training/runs/{dead.pk}").json()["can_resume"] is True
    assert api.get(f"/api/training/runs/{run_id}").json()["can_resume"] is True


# The end of the server


def test_a_shutdown_before_the_first_step_puts_the_run_back_into_the_queue(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = queued(api, **TEN_STEPS), queued(api, **TEN_STEPS)

    def shut_down(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        callbacks.on_phase("training", "training")
        drain_flag().touch()
        stop_job(first, reason="The server is shutting down")
        raise TrainingError("stopped", "stopped before the first step: no adapter was made")

    with monkeypatch.context() as patch:
        train_with(patch, shut_down)
        run_process(first)
    assert (first.status, first.stop_requested_at, first.error) == ("queued", None, None)
    drain_flag().unlink()
    assert work_queue() == [f"training:{first.pk} completed", f"training:{second.pk} completed"]


def test_a_run_that_the_user_had_stopped_before_the_shutdown_ends(
    api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = queued(api)

    def stopped(job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        callbacks.on_phase("training", "training")
        stop_job(run)
        time.sleep(0.05)
        drain_flag().touch()
        raise TrainingError("stopped", "stopped before the first step: no adapter was made")

    train_with(monkeypatch, stopped)
    run_process(run)
    assert (run.status, run.error) == ("error", "Stopped before the first step: no adapter was made")
