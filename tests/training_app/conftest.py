"""Fixtures of the training tests: the fake backend at the engine's waist and a queue in this process."""

import math
from pathlib import Path
from typing import Any

import pytest

from datasets_app.models import Dataset
from tests.training_app.world import Api, SameProcessExecutor, load_dataset


@pytest.fixture
def api(data_dir: Path, db: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Api:
    settings.BACKEND = "fake"
    monkeypatch.setattr("ftproject.core.tasks.get_executor", SameProcessExecutor)
    monkeypatch.setattr("ftproject.core.light_lane._looked_at", [-math.inf])
    return Api()


@pytest.fixture
def dataset(api: Api, tmp_path: Path) -> Dataset:
    return load_dataset(tmp_path)
