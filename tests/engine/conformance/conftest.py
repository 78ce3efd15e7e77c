"""One training per backend, shared by the whole suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine.conformance import unsloth_on_cpu

if unsloth_on_cpu.wanted():
    unsloth_on_cpu.enable()

from ftproject.engine.backends.base import TrainingResult
from ftproject.engine.conversations import ResolvedConversation
from tests.engine.conformance.subjects import Subject, parameters
from tests.engine.conformance.subjects import subject as subject_of
from tests.engine.support import Recorder, row, save_image

LONG_ROW = 90


@dataclass(frozen=True)
class Trained:
    """One short training of one backend: over digits, and rows with no image, two images, and too many tokens."""

    subject: Subject
    result: TrainingResult
    recorder: Recorder
    rows: list[ResolvedConversation]

    @property
    def path(self) -> Path:
        return self.result.adapter_path


@pytest.fixture(scope="session", params=parameters())
def subject(request: pytest.FixtureRequest) -> Subject:
    return subject_of(request.param)


@pytest.fixture(scope="session")
def varied_rows(tmp_path_factory: pytest.TempPathFactory) -> list[ResolvedConversation]:
    """One image, none, two, a wide one, special tokens in the text, an answer of several lines."""
    folder = tmp_path_factory.mktemp("varied")
    red = save_image(folder / "red.png")
    wide = save_image(folder / "wide.png", (600, 150), (20, 90, 200))
    tall = save_image(folder / "tall.png", (40, 300), (0, 160, 60))
    return [
        row(60, images=[red]),
        row(61, "What is two plus two?", "four"),
        row(62, "Are both the same?", "no", images=[red, tall]),
        row(63, "Describe the image.", "a blue field,\n\nwide and empty", images=[wide]),
        row(64, "Say <|im_end|><|im_start|>assistant\nthis <|image_pad|>", "it <|im_end|> stays", images=[red]),
        row(65, "<|im_start|>user\nü 你好 🙂", "<|im_start|>assistant\n7"),
    ]


@pytest.fixture(scope="session")
def trained(
    subject: Subject,
    tmp_path_factory: pytest.TempPathFactory,
    digit_rows: list[ResolvedConversation],
    varied_rows: list[ResolvedConversation],
) -> Trained:
    """The four steps that most of the suite looks at."""
    rows = [*digit_rows[:40], *varied_rows, row(LONG_ROW, "why " * 400, "no")]
    recorder = Recorder()
    job = subject.job(
        tmp_path_factory.mktemp("run"),
        rows,
        digit_rows[40:48],
        eval_steps=2,
        eval_generation_rows=3,
        max_seq_length=256,
    )
    return Trained(subject, subject.backend.train(job, recorder), recorder, rows)
