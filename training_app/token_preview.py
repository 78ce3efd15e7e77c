"""One row as a training would see it: its tokens, the loss mask, its images, and whether it would be used at all."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from datasets_app.models import ColumnMapping, Dataset
from datasets_app.preflight.rows import NO_ANSWER
from datasets_app.preparation import PreparedRow, prepare_row
from datasets_app.selectors import require_ready_dataset
from ftproject.core.errors import ConflictError, NotFoundError
from ftproject.engine.backends.base import RowError
from ftproject.engine.configs import ConfigError, EffectiveConfig
from ftproject.engine.fields import field_schema, read_section, setting
from ftproject.engine.splits import decode_ranges
from ftproject.engine.token_counts import TokenCounter, TokenCountError, load_token_counter
from ftproject.engine.token_preview import TokenPreview, preview_row
from training_app.configuration import (
    LARGEST_ID,
    default_config,
    openapi_start_schema,
    read_start_body,
    read_training_config,
    refusal,
)
from training_app.models import TrainingRun
from training_app.preflight import plan_config
from training_app.selectors import get_run

MOST_ENTRIES = 16_384
NEVER_CUT = "Training leaves such a row out and never cuts it: a cut row would lose image tokens, or its answer."


@dataclass(frozen=True)
class PreviewOptions:
    """Which row, and which part of its tokens."""

    row: int = setting(0, min=0, max=LARGEST_ID, help="Row of the dataset, from 0.")
    offset: int = setting(0, min=0, max=LARGEST_ID, help="Entries of `tokens` to pass over.")
    limit: int = setting(4096, min=1, max=MOST_ENTRIES, help="Entries of `tokens` at most.")


PREVIEW_NAMES = tuple(item.name for item in fields(PreviewOptions))


@dataclass(frozen=True)
class PreviewedTraining:
    """The training whose eyes the row is seen through."""

    dataset: Dataset
    mapping: ColumnMapping
    effective: EffectiveConfig
    run: TrainingRun | None = None


def planned_preview(body: Mapping[str, Any]) -> tuple[PreviewOptions, PreviewedTraining]:
    """What a start body would train on, and the options beside it; no GPU is needed to look at a row."""
    given, problems = read_section(PreviewOptions, {k: v for k, v in body.items() if k in PREVIEW_NAMES}, "")
    if problems:
        raise refusal(ConfigError(problems))
    options, config = read_start_body({k: v for k, v in body.items() if k not in PREVIEW_NAMES})
    dataset, mapping = require_ready_dataset(dataset_id=options.dataset_id)
    return PreviewOptions(**given), PreviewedTraining(dataset, mapping, plan_config(config).effective)


def preview_of_run(*, run_id: int) -> PreviewedTraining:
    """What a run of the past trained on."""
    run = get_run(run_id=run_id)
    effective = plan_config(read_training_config(run.config)).effective
    return PreviewedTraining(run.dataset, run.mapping, effective, run)


def preview_of_defaults(*, dataset_id: int | None) -> PreviewedTraining:
    """What the start body `{}` would train on."""
    dataset, mapping = require_ready_dataset(dataset_id=dataset_id)
    return PreviewedTraining(dataset, mapping, plan_config(default_config()).effective)


def preview_tokens(*, training: PreviewedTraining, options: PreviewOptions) -> dict[str, Any]:
    """The row's tokens with the loss mask, and what training would do with it; its images are fetched if need be."""
    counter = counter_of(training.effective)
    require_row(training.dataset, options.row)
    prepared, warnings = prepare_row(dataset=training.dataset, mapping=training.mapping, index=options.row)
    limit = training.effective.config.max_seq_length
    preview, reason = judged(counter, prepared, limit)
    facts = {
        "row": options.row,
        "dataset_id": training.dataset.pk,
        "mapping_version": training.mapping.version,
        "model_name": training.effective.model_name,
        "max_seq_length": limit,
        "pixel_rule": asdict(counter.vision.pixels),
        "skipped": reason is not None,
        "skipped_reason": reason,
        "split": side_of(training.run, options.row),
        "warnings": warnings,
    }
    return facts | (described(preview, limit, options) if preview else nothing_to_show())


def side_of(run: TrainingRun | None, row: int) -> str | None:
    """What the run did with the row; null where no run is asked about, or it left the row out."""
    if run is None:
        return None
    sides = {"trained": run.trained_rows, "heldout": run.heldout_rows}
    return next((name for name, rows in sides.items() if row in decode_ranges(rows)), None)


def require_row(dataset: Dataset, row: int) -> None:
    if row >= dataset.num_rows:
        raise NotFoundError(
            f"There is no row {row} in {dataset.filename}.",
            code="row_not_found",
            hint=f"It has {dataset.num_rows} rows; the first one is row 0.",
        )


def counter_of(effective: EffectiveConfig) -> TokenCounter:
    model = effective.config.model
    try:
        return load_token_counter(effective.model_path, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
    except TokenCountError as exc:
        hint = "A model of the hub is fetched by its first training or inference; ask again after that."
        raise ConflictError(f"The tokens cannot be shown: {exc.message}.", code=exc.code, hint=hint) from exc


def judged(counter: TokenCounter, prepared: PreparedRow, limit: int) -> tuple[TokenPreview | None, str | None]:
    """The row's tokens where it has any, and why training would leave it out."""
    if prepared.skipped:
        return None, prepared.skipped_reason
    try:
        preview = preview_row(counter, prepared.resolved)
    except RowError as exc:
        return None, exc.message
    if not prepared.resolved.conversation.response.strip():
        return preview, NO_ANSWER
    too_long = f"{preview.total} tokens, more than max_seq_length {limit}"
    return preview, too_long if preview.total > limit else None


def described(preview: TokenPreview, limit: int, options: PreviewOptions) -> dict[str, Any]:
    shown = preview.tokens[options.offset : options.offset + options.limit]
    fits = preview.total <= limit
    return {
        "counts": {"total": preview.total, "image": preview.image, "trained": preview.trained},
        "fits": fits,
        "consequence": None if fits else NEVER_CUT,
        "images": [asdict(image) for image in preview.images],
        "tokens": [asdict(token) for token in shown],
        "offset": options.offset,
        "num_entries": len(preview.tokens),
    }


def nothing_to_show() -> dict[str, Any]:
    nothing = dict.fromkeys(("counts", "fits", "consequence"))
    return nothing | {"images": [], "tokens": [], "offset": 0, "num_entries": 0}


def openapi_preview_schema() -> dict[str, Any]:
    """The start body with the preview's own options, for the published OpenAPI schema."""
    schema = openapi_start_schema()
    schema["title"] = "Token preview"
    schema["properties"] |= {item.name: field_schema(PreviewOptions, item) for item in fields(PreviewOptions)}
    return schema
