"""Rows for tests of the queue: real training runs, without anything behind them."""

import hashlib
from typing import Any

from datasets_app.models import ColumnMapping, Dataset
from evaluation_app.models import EvaluationRun
from training_app.models import TrainingRun


def make_dataset(name: str = "rows.csv") -> Dataset:
    digest = hashlib.sha256(name.encode()).hexdigest()
    dataset, _ = Dataset.objects.get_or_create(
        sha256=digest,
        defaults={"filename": name, "size_bytes": 1, "format": "csv", "num_rows": 2, "num_columns": 2},
    )
    return dataset


def make_mapping(dataset: Dataset) -> ColumnMapping:
    mapping, _ = ColumnMapping.objects.get_or_create(
        dataset=dataset, version=1, defaults={"prompt_column": "prompt", "response_column": "answer"}
    )
    return mapping


def make_training(**fields: Any) -> TrainingRun:
    dataset = make_dataset()
    return TrainingRun.objects.create(dataset=dataset, mapping=make_mapping(dataset), model_name="tiny", **fields)


def make_evaluation(**fields: Any) -> EvaluationRun:
    dataset = make_dataset()
    return EvaluationRun.objects.create(
        dataset=dataset, mapping=make_mapping(dataset), model_name="tiny", model_type="base", **fields
    )
