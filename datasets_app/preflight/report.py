"""Puts the report together, and says in plain words what it means."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets_app.models import ColumnMapping, Dataset
from datasets_app.preflight.estimates import disk_report, memory_report, time_report
from datasets_app.preflight.port import PlannedTraining, training
from datasets_app.preflight.rows import judge_rows
from datasets_app.preflight.tally import PreflightTally
from datasets_app.selectors import read_rows
from ftproject.engine.token_counts import TokenCounter, TokenCountError, load_token_counter, read_model_json

LOPSIDED_SHARE = 0.9
LABELS_AT_MOST = 50
FEW_ROWS = 20


class StoppedError(Exception):
    """A stop came before the last row."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        super().__init__(f"stopped after {rows} rows")


@dataclass(frozen=True)
class Judged:
    """A tally of all rows, and with what it was made."""

    tally: PreflightTally
    counter: TokenCounter | None
    no_counts: str | None


def make_report(
    *,
    dataset: Dataset,
    mapping: ColumnMapping,
    plan: PlannedTraining,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int], None],
) -> dict[str, Any]:
    """The whole report; raises StoppedError. `on_progress` gets the number of rows looked at."""
    counter, no_counts = load_counter(plan)
    tally = PreflightTally()
    limit = plan.effective.config.max_seq_length
    for row in judge_rows(dataset=dataset, mapping=mapping, counter=counter, max_seq_length=limit):
        tally.add(row)
        on_progress(tally.rows)
        if should_stop():
            raise StoppedError(tally.rows)
    return assemble(dataset, mapping, plan, Judged(tally, counter, no_counts))


def load_counter(plan: PlannedTraining) -> tuple[TokenCounter | None, str | None]:
    """The model's counter, or why there is none; nothing is downloaded."""
    model = plan.effective.config.model
    try:
        return load_token_counter(
            plan.effective.model_path, min_pixels=model.min_pixels, max_pixels=model.max_pixels
        ), None
    except TokenCountError as exc:
        return None, exc.message


def assemble(dataset: Dataset, mapping: ColumnMapping, plan: PlannedTraining, judged: Judged) -> dict[str, Any]:
    tally, options = judged.tally, plan.effective.config.options
    truth = mapping.ground_truth_column or mapping.response_column
    train_rows, heldout_rows = tally.split.sizes(
        options.holdout_fraction, options.holdout_seed, stratify=options.holdout_stratify
    )
    facts = training()
    speed = facts.measured_speed(model_name=plan.effective.model_name, device=plan.device)
    report: dict[str, Any] = {
        "dataset_id": dataset.pk,
        "mapping_version": mapping.version,
        "model_name": plan.effective.model_name,
        "device": plan.device,
        "rows": tally.rows_report(),
        "images": tally.images_report(),
        "tokens": tokens_section(judged),
        "too_long": too_long_section(plan, judged),
        "duplicates": tally.repeats.duplicates(),
        "conflicts": tally.repeats.conflicts(cell_reader(dataset, mapping.response_column)),
        "labels": {"column": truth, **tally.repeats.label_balance(cell_reader(dataset, truth))},
        "empty_answers": tally.empty_answers_report(),
        "split": {
            "holdout_fraction": options.holdout_fraction,
            "holdout_seed": options.holdout_seed,
            "holdout_stratify": options.holdout_stratify,
            "train_rows": train_rows,
            "heldout_rows": heldout_rows,
        },
        "time": time_report(plan, tally.lengths, train_rows, speed),
        "memory": memory_report(plan, tally.lengths, speed),
        "disk": disk_report(plan, facts.free_mb_wanted(model_name=plan.effective.model_name)),
        "blockers": list(plan.blockers),
    }
    return conclude(report, plan)


def cell_reader(dataset: Dataset, column: str) -> Callable[[int], str]:
    return lambda row: read_rows(dataset=dataset, start=row, count=1)[0][column]


def tokens_section(judged: Judged) -> dict[str, Any] | None:
    """Null with the reason beside it where the model's files are not here."""
    if judged.counter is None:
        return {"counted": 0, "reason": judged.no_counts}
    return {**judged.tally.lengths.distribution(), "reason": None}


def too_long_section(plan: PlannedTraining, judged: Judged) -> dict[str, Any]:
    try:
        text = read_model_json(plan.effective.model_path, "config.json").get("text_config") or {}
    except TokenCountError:
        text = {}
    limit = text.get("max_position_embeddings")
    vision = judged.counter.vision if judged.counter else None
    return judged.tally.lengths.too_long_report(
        plan.effective.config.max_seq_length, vision, limit if isinstance(limit, int) else None
    )


def conclude(report: dict[str, Any], plan: PlannedTraining) -> dict[str, Any]:
    """Adds what keeps a training from starting, and the warnings."""
    blockers = report["blockers"]
    if not report["split"]["train_rows"]:
        reasons = "; ".join(item["reason"] for item in report["rows"]["reasons"][:3]) or "the dataset is empty"
        blockers.append({"code": "no_usable_rows", "message": f"No row can be trained on: {reasons}."})
    if not report["disk"]["enough"]:
        disk = report["disk"]
        message = f"Only {disk['free_mb']} MB are free in the data directory; {disk['wanted_free_mb']} MB are needed."
        blockers.append({"code": "disk_full", "message": message})
    warnings = [*plan.effective.warnings, *warnings_of(report)]
    return {"can_train": not blockers, **report, "warnings": warnings}


def warnings_of(report: dict[str, Any]) -> list[str]:
    """What a user should know before starting, most harmful first."""
    return [text for text in (*_row_warnings(report), *_answer_warnings(report), *_cost_warnings(report)) if text]


def _row_warnings(report: dict[str, Any]) -> list[str]:
    rows, images, long = report["rows"], report["images"], report["too_long"]
    missing = images["not_fetched"]
    usable = rows["usable"]
    return [
        f"{rows['skipped']} of {rows['total']} rows will not be trained on." if rows["skipped"] else "",
        f"{long['count']} rows are longer than {long['max_seq_length']} tokens and will be left out whole."
        if long["count"]
        else "",
        f"{images['failed']} images in {images['rows_with_failures']} rows cannot be used." if images["failed"] else "",
        f"{missing['images']} images in {missing['rows']} rows are not fetched yet: their tokens are not counted, "
        "and some may fail."
        if missing["images"]
        else "",
        f"Tokens were not counted: {report['tokens']['reason']}." if report["tokens"]["reason"] else "",
        f"Only {usable} rows are left to learn from." if 0 < usable < FEW_ROWS else "",
    ]


def _answer_warnings(report: dict[str, Any]) -> list[str]:
    twice, torn, labels = report["duplicates"], report["conflicts"], report["labels"]
    share = labels["majority_share"] or 0
    lopsided = 1 < labels["distinct"] <= LABELS_AT_MOST and share >= LOPSIDED_SHARE
    return [
        f"{torn['rows']} rows in {torn['groups']} groups ask the same and are answered differently."
        if torn["groups"]
        else "",
        f"{twice['extra_rows']} rows repeat another row exactly." if twice["extra_rows"] else "",
        f"Always answering {labels['labels'][0]['label']!r} would already score {share:.0%}." if lopsided else "",
        "Every row has the same answer: there is nothing to learn."
        if labels["distinct"] == 1 and report["rows"]["usable"] > 1
        else "",
    ]


def _cost_warnings(report: dict[str, Any]) -> list[str]:
    memory = report["memory"]
    return [
        f"The run may need {memory['total_mb']} MB, and the device has {memory['device_mb']} MB: lower "
        "per_device_train_batch_size, max_seq_length or max_pixels."
        if memory["fits"] is False
        else "",
    ]


def summary_of(report: dict[str, Any]) -> dict[str, Any]:
    """The report without its lists, for the answer of a dry run."""
    tokens = {name: report["tokens"].get(name) for name in ("counted", "median", "max", "reason")}
    return {
        "can_train": report["can_train"],
        "rows": {name: report["rows"][name] for name in ("total", "usable", "skipped")},
        "images": {"failed": report["images"]["failed"], "not_fetched": report["images"]["not_fetched"]["images"]},
        "tokens": tokens,
        "too_long": report["too_long"]["count"],
        "split": report["split"],
        "seconds": report["time"]["seconds"],
        "memory_mb": report["memory"]["total_mb"],
        "blockers": report["blockers"],
        "warnings": report["warnings"],
    }
