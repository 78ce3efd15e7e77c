"""A mapped dataset, adapters with a split, and a queue that works in this process, all with the fake backend."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from datasets_app.services import dataset_import, mapping_set
from evaluation_app.loading import let_go
from evaluation_app.models import EvaluationRun
from evaluation_app.runner import execute_evaluation
from ftproject.core.jobs import claim_job
from ftproject.core.storage import adapters_dir
from ftproject.engine.splits import encode_ranges
from training_app.models import Adapter, TrainingRun

COLUMNS = ("prompt", "answer", "note")


@pytest.fixture(autouse=True)
def instant_engine(data_dir: Path, settings: Any) -> None:
    settings.BACKEND = "fake"
    settings.EVALUATION_BATCH_SIZE = 4
    let_go()


@pytest.fixture
def api() -> APIClient:
    return APIClient(HTTP_HOST="localhost")


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    """Imports rows of (prompt, answer, note) and maps them; an empty note skips the row when it is mandatory."""

    def make(
        rows: Sequence[Sequence[str]], *, columns: Sequence[str] = COLUMNS, name: str = "rows.csv", **mapping: Any
    ) -> Dataset:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([columns, *rows])
        dataset = dataset_import(path=path)
        mapping_set(
            dataset=dataset,
            **{"prompt_column": columns[0], "response_column": columns[1], "mandatory_columns": [], **mapping},
        )
        return dataset

    return make


@pytest.fixture
def dataset(make_dataset: Callable[..., Dataset]) -> Dataset:
    """Ten rows, of which row 3 is skipped for its empty note."""
    rows = [(f"What is {n}?", f"number {n}", "" if n == 3 else f"note {n}") for n in range(10)]
    return make_dataset(rows, mandatory_columns=["note"])


@pytest.fixture
def make_adapter() -> Callable[..., Adapter]:
    """An adapter folder as training leaves it, trained on `trained` and not on `heldout`."""

    def make(
        dataset: Dataset,
        *,
        name: str = "adapter_1",
        trained: Sequence[int] = (0, 1, 2, 4, 5, 6),
        heldout: Sequence[int] = (7, 8, 9),
        **fields: Any,
    ) -> Adapter:
        run = TrainingRun.objects.create(
            dataset=dataset,
            mapping=dataset.mappings.get(),
            model_name="tiny-qwen3-vl",
            status="completed",
            config={"model_config_data": {"max_seq_length": 512, "max_pixels": 4096}},
            trained_rows=encode_ranges(trained),
            heldout_rows=encode_ranges(heldout),
        )
        folder = adapters_dir() / name
        folder.mkdir()
        config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "base_model_name_or_path": "tiny-qwen3-vl"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        facts = {"base_model_name": "tiny-qwen3-vl", "r": 16, "size_bytes": 1, "sha256": "0" * 64, "effective": True}
        return Adapter.objects.create(name=name, run=run, **{**facts, **fields})

    return make


@pytest.fixture
def adapter(dataset: Dataset, make_adapter: Callable[..., Adapter]) -> Adapter:
    return make_adapter(dataset)


@pytest.fixture
def work() -> Callable[..., list[EvaluationRun]]:
    """Executes the waiting runs, oldest first, as a run process would."""

    def work(should_stop: Callable[[], bool] = lambda: False) -> list[EvaluationRun]:
        waiting = list(EvaluationRun.objects.filter(status="queued").order_by("id"))
        for run in waiting:
            assert claim_job(run)
            execute_evaluation(run, should_stop)
            run.refresh_from_db()
        return waiting

    return work


def rows_of(run: EvaluationRun) -> list[int]:
    return list(run.samples.order_by("index").values_list("index", flat=True))
