"""How to make a run again: its start body, the lines that send it, and everything that must be the same."""

import json
import shlex
from typing import Any

from datasets_app.models import ColumnMapping
from datasets_app.selectors import current_mapping
from training_app.models import TrainingRun

MAPPING_FIELDS = (
    "prompt_column",
    "response_column",
    "ground_truth_column",
    "image_url_columns",
    "image_separator",
    "mandatory_columns",
)
SPLIT_FIELDS = ("holdout_fraction", "holdout_seed", "holdout_stratify")
NEWER_MAPPING = "The dataset has a newer column mapping: set this one first (the first line of `curl`)."
CONTINUED = "This run went on from step {step} of run {run}; the body trains the same from the first step."


def mapping_body(mapping: ColumnMapping) -> dict[str, Any]:
    """The body that sets a mapping again."""
    return {name: getattr(mapping, name) for name in MAPPING_FIELDS}


def reproduction(run: TrainingRun, *, base_url: str) -> dict[str, Any]:
    """The run as a recipe; the body holds the effective configuration, so that no default decides anything."""
    body = {**run.config, "dataset_id": run.dataset_id}
    mapping = {**mapping_body(run.mapping), "dataset_id": run.dataset_id}
    split = {name: run.config.get(name) for name in SPLIT_FIELDS}
    return {
        "body": body,
        "curl": [
            curl_line(f"{base_url}/api/datasets/mapping", mapping),
            curl_line(f"{base_url}/api/training/start", body),
        ],
        "command": command_line(run, body),
        "dataset": {
            "id": run.dataset_id,
            "filename": run.dataset.filename,
            "sha256": run.dataset.sha256,
            "num_rows": run.dataset.num_rows,
        },
        "mapping": mapping_body(run.mapping),
        "split": split | {"trained_rows": run.trained_rows, "heldout_rows": run.heldout_rows},
        "rows_sha256": run.rows_sha256,
        "seed": run.config.get("sft_config", {}).get("seed"),
        "base_model": run.model_name,
        "backend": run.backend,
        "device": run.device,
        "versions": run.versions,
        "notes": notes(run),
    }


def curl_line(url: str, body: dict[str, Any]) -> str:
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f'curl -X POST {shlex.quote(url)} -H "Content-Type: application/json" -d {data}'


def command_line(run: TrainingRun, body: dict[str, Any]) -> str:
    """One shell line: the body goes through standard input, so that null and every other value stay what they are."""
    text = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"echo {text} | QWEN3VL_BACKEND={shlex.quote(run.backend)} python manage.py train --config -"


def notes(run: TrainingRun) -> list[str]:
    found = []
    newest = current_mapping(dataset=run.dataset)
    if newest is not None and newest.pk != run.mapping_id:
        found.append(NEWER_MAPPING)
    if run.resumed_from_id is not None:
        found.append(CONTINUED.format(step=run.resumed_step, run=run.resumed_from_id))
    return found
