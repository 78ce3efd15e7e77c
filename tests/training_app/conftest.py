"""Fixtures of the training tests: the fake backend at the engine's waist and a queue in this process."""

import math
from pathlib import Path
from typing import Any

import pytest

from datasets_app.models import Dataset
from tests.training_app.world import (
    TEN_STEPS,
    Api,
    SameProcessExecutor,
    die_after,
    load_dataset,
    queued,
    run_process,
)
from training_app.models import TrainingRun


@pytest.fixture
def api(data_dir: Path, db: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Api:
    settings.BACKEND = "fake"
    monkeypatch.setattr("ftproject.core.tasks.get_executor", SameProcessExecutor)
    monkeypatch.setattr("ftproject.core.light_lane._looked_at", [-math.inf])
    return Api()


@pytest.fixture
def dataset(api: Api, tmp_path: Path) -> Dataset:
    return load_dataset(tmp_path)


@pytest.fixture
def dead(api: Api, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> TrainingRun:
    """A run that died at step 6 with a checkpoint at step 4."""
    with monkeypatch.context() as patch:
        die_after(patch, 6)
        run = run_process(queued(api, **TEN_STEPS))
    assert (run.status, run.current_step) == ("error", 6)
    return run
