"""What can be asked about runs of the past: logged steps as CSV, the log as it grows, what differs between two runs."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from ftproject.core.errors import InvalidInputError, Problem
from ftproject.core.executor import LogPart, get_executor
from ftproject.core.formula_escape import escape_formula
from training_app.models import TrainingMetric, TrainingRun
from training_app.reproduction import mapping_body
from training_app.selectors import list_metrics

METRIC_COLUMNS = tuple(field.name for field in TrainingMetric._meta.fields if field.name not in {"id", "run"})
ROWS_FIELDS = ("trained_rows", "heldout_rows", "rows_sha256", "num_train_rows", "num_heldout_rows", "num_skipped_rows")
RESULT_FIELDS = ("status", "current_step", "total_steps", "stopped_early", "loss", "eval_loss", "resumed_from_id")
CSV_LINES = 1000
LARGEST_OFFSET = 2**62
DEFAULT_TAIL = 200


def metrics_csv(*, run: TrainingRun, since_step: int = 0) -> Iterator[str]:
    """Every logged step after `since_step`, a line each; null is an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(METRIC_COLUMNS)
    steps = list_metrics(run=run, since_step=since_step).iterator(chunk_size=CSV_LINES)
    for number, metric in enumerate(steps, start=1):
        writer.writerow([cell_of(metric, name) for name in METRIC_COLUMNS])
        if number % CSV_LINES == 0:
            yield taken(buffer)
    yield taken(buffer)


def cell_of(metric: TrainingMetric, name: str) -> str:
    value = getattr(metric, name)
    if value is None:
        return ""
    return escape_formula(value.isoformat() if name == "created_at" else str(value))


def taken(buffer: io.StringIO) -> str:
    text = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return text


def read_log(*, run: TrainingRun, tail: int | None = None, offset: int | None = None) -> LogPart:
    """The last lines, or what was written after `offset` bytes; both say where to go on from."""
    executor = get_executor()
    if offset is not None:
        return executor.log_since(run.KIND, run.pk, offset)
    end = executor.log_since(run.KIND, run.pk, LARGEST_OFFSET)  # first, so that no line falls between the two
    return LogPart(executor.logs(run.KIND, run.pk, tail or DEFAULT_TAIL), end.offset)


def diff_runs(*, run: TrainingRun, other: TrainingRun) -> dict[str, Any]:
    """What differs between two runs, by dotted name; a side that lacks a name has no entry under it."""
    if run.pk == other.pk:
        problem = Problem(code="same_run", message="is the same run; name another one", field="other")
        raise InvalidInputError(f"other: {problem.message}.", code="same_run", errors=[problem])
    sides = (facts_of(run), facts_of(other))
    parts = {name: differences(sides[0][name], sides[1][name]) for name in sides[0]}
    compared = ("effective", "rows", "versions")
    return {
        "run_id": run.pk,
        "other_id": other.pk,
        "same_training": not any(parts[name] for name in compared),
        **parts,
    }


def facts_of(run: TrainingRun) -> dict[str, dict[str, Any]]:
    dataset = run.dataset
    return {
        "requested": run.requested_config,
        "effective": {"model_name": run.model_name, "device": run.device, "backend": run.backend, **run.config},
        "rows": {
            "dataset": {"sha256": dataset.sha256, "num_rows": dataset.num_rows},
            "mapping": mapping_body(run.mapping),
            **{name: getattr(run, name) for name in ROWS_FIELDS},
        },
        "versions": run.versions,
        "results": {**{name: getattr(run, name) for name in RESULT_FIELDS}, "metrics": run.metrics},
    }


def differences(run: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    left, right = flat(run), flat(other)
    found = {}
    for name in [*left, *(name for name in right if name not in left)]:
        sides = {side: values[name] for side, values in (("run", left), ("other", right)) if name in values}
        if len(sides) == 1 or sides["run"] != sides["other"]:
            found[name] = sides
    return found


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested objects as dotted names: {"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return found
