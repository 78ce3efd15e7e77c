"""Decides everything about a run before it is queued, so that what cannot work is refused before any GPU time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from django.conf import settings

from datasets_app.models import ColumnMapping, Dataset
from datasets_app.selectors import iter_rows, require_ready_dataset
from evaluation_app.models import EvaluationRun
from evaluation_app.splits import rows_in_scope
from ftproject.core.errors import InvalidInputError, UnavailableError
from ftproject.engine.classification import TooManyLabelsError, known_labels, parse_label
from ftproject.engine.configs import (
    EVALUATION_GENERATION,
    ConfigError,
    DeviceFacts,
    EffectiveConfig,
    GenerationParams,
    ModelConfig,
    TrainingConfig,
    parse_generation_params,
)
from ftproject.engine.labels import MOST_SCORED_LABELS
from ftproject.engine.metrics import ScoringOptions, parse_scoring_options
from ftproject.engine.remote import REMOTE_BACKEND, RemoteError, RemoteRefusalError, RemoteServer
from training_app.configuration import device_name, refusal, resolve_config
from training_app.models import Adapter
from training_app.remote_settings import remote_settings
from training_app.selectors import find_adapter, find_effective_adapter

MODEL_SETTINGS = tuple(item.name for item in fields(ModelConfig) if item.name != "model_name")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What a client may choose; the names are those of the request body."""

    adapter_path: str | int | None = None
    split_adapter: str | int | None = None
    dataset_id: int | None = None
    model_name: str | None = None
    sample_limit: int | None = None
    rows: str = EvaluationRun.Rows.ALL
    classification_mode: bool = False
    positive_label: str | None = None
    metrics: Sequence[str | Mapping[str, Any]] | None = None
    normalization: Mapping[str, Any] | None = None
    confidence: bool = False
    reuse_base_predictions: bool = True
    use_inference_url: bool = False
    generation_params: Mapping[str, Any] | None = None


def plan_run(request: EvaluationRequest) -> EvaluationRun:
    """The unsaved run that this request asks for; raises a ProductError for anything that cannot work."""
    params = read_generation_params(request.generation_params)
    scoring = read_scoring_options(request)
    dataset, mapping = require_ready_dataset(dataset_id=request.dataset_id)
    adapter = find_effective_adapter(reference=request.adapter_path)
    split_adapter = choose_split_adapter(adapter, request.split_adapter)
    base = find_remote_base(request, adapter, split_adapter) if request.use_inference_url else None
    base = base or find_local_base(request, adapter, split_adapter)
    run = EvaluationRun(
        dataset=dataset,
        mapping=mapping,
        adapter=adapter,
        split_adapter=split_adapter,
        model_type=EvaluationRun.ModelType.FINETUNED if adapter else EvaluationRun.ModelType.BASE,
        model_name=base.model_name,
        device=base.device,
        backend=base.backend,
        model_settings=base.model_settings,
        eval_mode=EvaluationRun.EvalMode.CLASSIFICATION
        if request.classification_mode
        else EvaluationRun.EvalMode.TOKEN,
        positive_label=request.positive_label,
        metric_options=scoring.to_dict(),
        # Nobody can tell whether another server's weights are those of yesterday.
        reuse_base_predictions=request.reuse_base_predictions and not request.use_inference_url,
        sample_limit=request.sample_limit,
        rows=request.rows,
        generation_params=asdict(params),
    )
    run.total = len(rows_in_scope(run))
    check_labels(request, scoring, dataset, mapping)
    return run


@dataclass(frozen=True)
class PlannedBase:
    """The base model of a run, where it runs and how it is loaded."""

    model_name: str
    device: str
    backend: str
    model_settings: dict[str, Any]


def find_local_base(request: EvaluationRequest, adapter: Adapter | None, split_adapter: Adapter | None) -> PlannedBase:
    effective, device = resolve_base_model(request.model_name, adapter, split_adapter)
    model_settings = {name: getattr(effective.config.model, name) for name in MODEL_SETTINGS}
    return PlannedBase(effective.model_name, device_name(device), effective.backend, model_settings)


def find_remote_base(request: EvaluationRequest, adapter: Adapter | None, split_adapter: Adapter | None) -> PlannedBase:
    """The base on the server of QWEN3VL_INFERENCE_URL; an adapter is shown to have an effect when the run begins."""
    where = remote_settings()
    if where is None:
        hint = "Start with QWEN3VL_INFERENCE_URL, or leave use_inference_url out."
        raise InvalidInputError("No inference server is set.", code="inference_url_not_set", hint=hint)
    if request.confidence:
        hint = "Leave confidence or use_inference_url out."
        detail = "A chat server does not tell the probability of a given label."
        raise InvalidInputError(detail, code="confidence_needs_local", hint=hint)
    require_own_base(request.model_name, adapter)
    named = request.model_name or (split_adapter.base_model_name if split_adapter else None)
    server = RemoteServer(where)
    try:
        return PlannedBase(named or server.base_of(None), where.host, REMOTE_BACKEND, {})
    except (RemoteError, RemoteRefusalError) as error:
        raise UnavailableError(error.message, code=error.code, hint="Look at that server, or evaluate here.") from error
    finally:
        server.close()


def read_generation_params(given: Mapping[str, Any] | None) -> GenerationParams:
    try:
        return parse_generation_params(given, EVALUATION_GENERATION)
    except ConfigError as exc:
        raise refusal(exc) from exc


def read_scoring_options(request: EvaluationRequest) -> ScoringOptions:
    try:
        scoring = parse_scoring_options(request.metrics, request.normalization, confidence=request.confidence)
    except ConfigError as exc:
        raise refusal(exc) from exc
    if scoring.confidence and not request.classification_mode:
        raise InvalidInputError(
            "confidence is for classification_mode only: it is the probability of one label among the others.",
            code="confidence_unused",
            hint="Set classification_mode to true, or leave confidence out.",
        )
    return scoring


def choose_split_adapter(adapter: Adapter | None, reference: str | int | None) -> Adapter | None:
    """A fine-tuned model is judged on its own split: on another's, rows it was trained on would pass for unseen."""
    named = find_adapter(reference=reference) if reference is not None else None
    if adapter is not None and named is not None and named != adapter:
        raise InvalidInputError(
            f"split_adapter {named.name!r} is not the evaluated adapter {adapter.name!r}.",
            code="split_adapter_conflict",
            hint="Leave split_adapter out: an adapter is judged on its own split. It is for base runs.",
        )
    return adapter or named


def resolve_base_model(
    model_name: str | None, adapter: Adapter | None, split_adapter: Adapter | None
) -> tuple[EffectiveConfig, DeviceFacts]:
    """The base model and how it is loaded; a base run that names a split takes that adapter's base and pixels."""
    require_own_base(model_name, adapter)
    wanted = ModelConfig(
        **{"max_seq_length": settings.DEFAULT_MAX_SEQ_LENGTH, **trained_model_settings(split_adapter)},
        model_name=model_name or (split_adapter.base_model_name if split_adapter else None),
    )
    try:
        return resolve_config(TrainingConfig(model=wanted))
    except InvalidInputError as exc:
        raise with_our_field_names(exc) from exc


def require_own_base(model_name: str | None, adapter: Adapter | None) -> None:
    if adapter is not None and model_name not in (None, adapter.base_model_name):
        raise InvalidInputError(
            f"Adapter {adapter.name!r} belongs to {adapter.base_model_name}, not to {model_name}.",
            code="adapter_base_mismatch",
            hint="Leave model_name out: an adapter is evaluated on its own base model.",
        )


def with_our_field_names(exc: InvalidInputError) -> InvalidInputError:
    """The same refusal where model_name stands at the top of the body, as it does here."""
    section = "model_config_data."
    errors = [replace(problem, field=(problem.field or "").removeprefix(section)) for problem in exc.errors]
    return InvalidInputError(exc.detail.replace(section, ""), code=exc.code, hint=exc.hint, errors=errors)


def trained_model_settings(adapter: Adapter | None) -> dict[str, Any]:
    """How the base was loaded when the adapter was trained; evaluation must see the same pixels."""
    if adapter is None or adapter.run is None:
        return {}
    trained: dict[str, Any] = adapter.run.config.get("model_config_data") or {}
    return {name: trained[name] for name in MODEL_SETTINGS if name in trained}


def check_labels(request: EvaluationRequest, scoring: ScoringOptions, dataset: Dataset, mapping: ColumnMapping) -> None:
    """What cannot be classified would otherwise be noticed only when the whole run is over."""
    if not request.classification_mode:
        if request.positive_label is not None:
            raise InvalidInputError(
                "positive_label is for classification_mode only.",
                code="positive_label_unused",
                hint="Set classification_mode to true, or leave positive_label out.",
            )
        return
    column = mapping.ground_truth_column or mapping.response_column
    truths = (row[column] for _, row in iter_rows(dataset=dataset, columns=[column]))
    try:
        labels = known_labels(scoring.label_text(truth) for truth in truths)
    except TooManyLabelsError as exc:
        raise InvalidInputError(
            f"Column {column!r} is no column of labels: {exc}.",
            code="too_many_labels",
            hint="Leave classification_mode false; exact match and the token metrics need no labels.",
        ) from exc
    if scoring.confidence and len(labels) > MOST_SCORED_LABELS:
        raise InvalidInputError(
            f"confidence asks the model for each label of each row; {len(labels)} labels are more than "
            f"{MOST_SCORED_LABELS}.",
            code="too_many_labels",
            hint="Leave confidence out.",
        )
    if request.positive_label is not None and parse_label(request.positive_label, labels) is None:
        raise InvalidInputError(
            f"positive_label {request.positive_label!r} is no label of column {column!r}.",
            code="unknown_positive_label",
            hint=f"Labels found: {', '.join(labels[:20]) or 'none'}.",
        )
