"""Fixtures that really train and load, once per test session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ftproject.engine.backends import get_backend
from ftproject.engine.backends.base import TrainingResult
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.resident import ResidentModel
from ftproject.engine.training import train
from tests.engine.support import CPU, TINY, Recorder, row, training_job


@dataclass(frozen=True)
class TrainedAdapter:
    """One short but real training."""

    result: TrainingResult
    recorder: Recorder
    rows: Sequence[ResolvedConversation]
    heldout: Sequence[ResolvedConversation]

    @property
    def path(self) -> Path:
        return self.result.adapter_path


@pytest.fixture(scope="session")
def digit_rows(tmp_path_factory: pytest.TempPathFactory) -> list[ResolvedConversation]:
    """200 real handwritten digits as 64 x 64 PNG files."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    rows = []
    for index in range(200):
        path = folder / f"{index:03d}.png"
        pixels = np.clip(data.images[index] * 16, 0, 255).astype("uint8")
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB").save(path)
        rows.append(row(index, response=str(data.target[index]), images=[path]))
    return rows


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, digit_rows: list[ResolvedConversation]) -> TrainedAdapter:
    recorder = Recorder()
    rows, heldout = digit_rows[:160], digit_rows[160:]
    job = training_job(tmp_path_factory.mktemp("trained"), rows, heldout, max_steps=40, eval_steps=20)
    return TrainedAdapter(train(job, recorder, device=CPU), recorder, rows, heldout)


@pytest.fixture(scope="session")
def resident() -> ResidentModel:
    model = get_backend("transformers", CPU).load("tiny-qwen3-vl", TINY)
    assert isinstance(model, ResidentModel)
    return model
