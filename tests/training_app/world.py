"""A small world for training tests: a dataset with images, an API client, and a queue that runs in this process."""

import base64
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from PIL import Image

from datasets_app.models import Dataset
from datasets_app.services import dataset_import, mapping_set
from ftproject.core.executor import LogPart
from ftproject.core.jobs import Job, claim_job
from ftproject.core.run_context import execute
from ftproject.core.tasks import run_next_job
from ftproject.engine.backends.base import TrainingCallbacks, TrainingJob, TrainingProgress, TrainingResult
from ftproject.engine.backends.fake import FakeBackend
from training_app.models import TrainingRun
from training_app.runner import execute_training

Row = tuple[str, str, str]
TEN_STEPS: dict[str, Any] = {"sft_config": {"max_steps": 10, "save_steps": 4}}


def picture(shade: int) -> str:
    """A data URI of a small picture that no other shade shares."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, 255 - shade, shade)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def numbered_rows(count: int = 12) -> list[Row]:
    return [("Which digit?", picture(index * 7), str(index)) for index in range(count)]


def write_csv(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "image", "answer"])
        writer.writerows(rows)
    return path


def load_dataset(
    folder: Path, rows: list[Row] | None = None, *, name: str = "rows.csv", mapped: bool = True
) -> Dataset:
    path = write_csv(folder / name, numbered_rows() if rows is None else rows)
    dataset = dataset_import(path=path)
    if mapped:
        mapping_set(
            dataset=dataset,
            prompt_column="prompt",
            response_column="answer",
            ground_truth_column=None,
            image_url_columns=["image"],
            image_separator=None,
            mandatory_columns=["image"],
        )
    return dataset


class Api:
    """The API as a local client sees it."""

    def __init__(self) -> None:
        self.client = Client(HTTP_HOST="localhost")

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(path, query or None)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        if body is None:
            return self.client.post(path, data=b"", content_type="application/json", headers=headers)
        return self.client.post(path, data=body, content_type="application/json", headers=headers)

    def patch(self, path: str, body: Any) -> Any:
        return self.client.patch(path, data=body, content_type="application/json")

    def delete(self, path: str) -> Any:
        return self.client.delete(path)


class EndedProcess:
    """A run process that has ended already."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code

    def poll(self) -> int | None:
        return self.exit_code

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class SameProcessExecutor:
    """Does the run where it is submitted, so that a test sees its end at once."""

    def __init__(self, runner: Callable[[Any, Callable[[], bool]], None] = execute_training) -> None:
        self.runner = runner

    def submit(self, kind: str, run_id: int, claim: str) -> EndedProcess:
        return EndedProcess(execute(self.runner, kind, run_id, claim))

    def log_since(self, kind: str, run_id: int, offset: int) -> LogPart:
        return LogPart("", offset)

    def logs(self, kind: str, run_id: int, tail: int) -> str:
        return "the last words"


def work_queue() -> list[str]:
    """Runs all waiting jobs."""
    done = []
    while (word := run_next_job()) != "nothing to do":
        done.append(word)
    return done


def trained_run(api: Api, **body: Any) -> TrainingRun:
    """A completed run with its adapter."""
    started = api.post("/api/training/start", body).json()
    work_queue()
    run = TrainingRun.objects.get(pk=started["run_id"])
    assert run.status == Job.Status.COMPLETED, run.error
    return run


def claimed(run: TrainingRun) -> TrainingRun:
    """The run as a run process gets it."""
    assert claim_job(run)
    return run


class After:
    """should_stop that turns true at the nth question."""

    def __init__(self, questions: int) -> None:
        self.questions = questions

    def __call__(self) -> bool:
        self.questions -= 1
        return self.questions < 0


def queued(api: Api, **body: Any) -> TrainingRun:
    return TrainingRun.objects.get(pk=api.post("/api/training/start", body).json()["run_id"])


def run_process(run: TrainingRun, should_stop: Callable[[], bool] = lambda: False) -> TrainingRun:
    """What a run process does with this run, asked to stop by `should_stop`."""
    claimed(run)
    execute(lambda job, _: execute_training(job, should_stop), run.KIND, run.pk, run.claim)
    run.refresh_from_db()
    return run


def train_with(
    monkeypatch: pytest.MonkeyPatch, train: Callable[[TrainingJob, TrainingCallbacks], TrainingResult]
) -> None:
    """Puts another way of training at the engine's seam."""
    monkeypatch.setattr(FakeBackend, "train", lambda self, job, callbacks: train(job, callbacks))


class PowerCutError(Exception):
    """Ends the training in the middle, as a kill would, as far as the row is concerned."""


def die_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The next trainings end right after this step was reported."""
    plain = FakeBackend.train

    class Cut:
        def __init__(self, callbacks: TrainingCallbacks) -> None:
            self.callbacks = callbacks

        def __getattr__(self, name: str) -> Any:
            return getattr(self.callbacks, name)

        def on_progress(self, progress: TrainingProgress) -> None:
            self.callbacks.on_progress(progress)
            if progress.step >= step:
                raise PowerCutError(f"no power at step {progress.step}")

    monkeypatch.setattr(FakeBackend, "train", lambda self, job, callbacks: plain(self, job, Cut(callbacks)))
