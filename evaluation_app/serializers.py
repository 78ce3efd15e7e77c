"""Request and response shapes of evaluation."""

from dataclasses import asdict
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from evaluation_app.brief import brief_metrics
from evaluation_app.models import EvaluationRun
from evaluation_app.resume import judge_resume
from evaluation_app.run_listing import links_of, rows_per_second
from ftproject.core.jobs import queue_position
from ftproject.core.pagination import MAX_PAGE, MAX_PAGE_SIZE
from ftproject.core.serializers import StrictBooleanField, StrictCharField, StrictIntegerField, StrictSerializer
from ftproject.engine.fields import section_schema
from ftproject.engine.hyperparameters import EVALUATION_GENERATION, GenerationParams
from ftproject.engine.metrics import metric_schema, normalization_schema
from training_app.fields import GENERATION_HELP, AdapterReferenceField, GenerationParamsField

RUNS_A_PAGE = 20
LARGEST_LIMIT = 1_000_000_000


def generation_schema() -> dict[str, Any]:
    """The engine's settings with evaluation's own, greedy defaults."""
    schema = section_schema(GenerationParams, f"Greedy by default; {GENERATION_HELP}")
    for name, value in asdict(EVALUATION_GENERATION).items():
        schema["properties"][name]["default"] = value
    return schema


@extend_schema_field(generation_schema())
class GreedyParamsField(GenerationParamsField):
    """The same with evaluation's defaults in the schema."""


@extend_schema_field({"type": "array", "items": metric_schema()})
class MetricsField(GenerationParamsField):
    """Checked by the engine, where names, ranges and defaults live."""


@extend_schema_field(normalization_schema())
class NormalizationField(GenerationParamsField):
    """Checked by the engine."""


class RunEvaluationSerializer(StrictSerializer):
    """Which model answers which rows, and how; `{}` is the base model on every row of the current dataset."""

    adapter_path = AdapterReferenceField(
        default=None, allow_null=True, help_text="Path, name or id of an adapter; null evaluates the base model."
    )
    sample_limit = StrictIntegerField(
        default=None, allow_null=True, min_value=1, max_value=LARGEST_LIMIT, help_text="Rows from the top; null: all."
    )
    rows = serializers.ChoiceField(
        choices=EvaluationRun.Rows.choices, default=EvaluationRun.Rows.ALL, help_text="Which part of the split."
    )
    split_adapter = AdapterReferenceField(
        default=None, allow_null=True, help_text="For a base run: the adapter whose split `rows` refers to."
    )
    classification_mode = StrictBooleanField(default=False, help_text="Adds classification figures.")
    positive_label = StrictCharField(
        default=None, allow_null=True, max_length=200, help_text="The positive one of two labels."
    )
    metrics = MetricsField(
        default=None,
        allow_null=True,
        help_text="Further metrics, by name or with parameters; exact match and the token metrics always stand.",
    )
    normalization = NormalizationField(
        default=None, allow_null=True, help_text="What is done to both texts before any metric; kept on the run."
    )
    confidence = StrictBooleanField(
        default=False, help_text="With classification_mode: the probability of each label, one forward pass a label."
    )
    reuse_base_predictions = StrictBooleanField(
        default=True,
        help_text="Copies greedy answers of the base that an earlier run gave to the same rows; false computes all.",
    )
    use_inference_url = StrictBooleanField(
        default=False, help_text="Answers come from the server of QWEN3VL_INFERENCE_URL instead of a model loaded here."
    )
    generation_params = GreedyParamsField(default=None, allow_null=True)
    dataset_id = StrictIntegerField(
        default=None, allow_null=True, min_value=1, max_value=2**63 - 1, help_text="Null: the current dataset."
    )
    model_name = StrictCharField(
        default=None, allow_null=True, max_length=500, help_text="Base model; null: the default, or the adapter's own."
    )


class EvaluationStartedSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["started", "queued"])
    model_type = serializers.ChoiceField(choices=EvaluationRun.ModelType.choices)
    run_id = serializers.IntegerField()
    queue_position = serializers.IntegerField(required=False, help_text="Only when queued; 1 is next.")
    model_name = serializers.CharField()


def describe_start(run: EvaluationRun, position: int | None) -> dict[str, Any]:
    waits = {} if position is None else {"queue_position": position}
    status = "started" if position is None else "queued"
    return {"status": status, "model_type": run.model_type, "run_id": run.pk, **waits, "model_name": run.model_name}


class EvaluationStatusSerializer(serializers.Serializer[Any]):
    running = serializers.BooleanField(help_text="True from the start's answer until the run has ended.")
    model_type = serializers.ChoiceField(choices=EvaluationRun.ModelType.choices, allow_null=True)
    run_id = serializers.IntegerField(allow_null=True)
    status = serializers.CharField()
    current = serializers.IntegerField(allow_null=True)
    total = serializers.IntegerField(allow_null=True)
    eta = serializers.FloatField(allow_null=True, help_text="Seconds until the last row is answered.")
    queue_position = serializers.IntegerField(allow_null=True)
    message = serializers.CharField(allow_blank=True)
    error = serializers.CharField(allow_null=True)


class EvaluationStopSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["stopping", "cancelled"])
    run_id = serializers.IntegerField()
    message = serializers.CharField()


def describe_stop(run: EvaluationRun) -> dict[str, Any]:
    if run.is_terminal:
        return {"status": "cancelled", "run_id": run.pk, "message": f"Run {run.pk} was taken out of the queue."}
    return {"status": "stopping", "run_id": run.pk, "message": run.message}


class EvaluationRunSerializer(serializers.ModelSerializer[EvaluationRun]):
    adapter = serializers.CharField(source="adapter.name", default=None, allow_null=True)
    dataset_id = serializers.IntegerField()
    metrics = serializers.SerializerMethodField(
        help_text="all, seen, unseen and classification; null where unknown. With more than 20 labels only the run's "
        "own route has the confusion matrix and the figures of each label."
    )
    num_reused = serializers.IntegerField(help_text="Rows whose answer was copied from an earlier run of the base.")
    can_resume = serializers.SerializerMethodField()
    resume_reason = serializers.SerializerMethodField(help_text="After which row it goes on, or why it cannot.")

    def get_metrics(self, run: EvaluationRun) -> dict[str, Any]:
        return brief_metrics(run.metrics)

    def get_can_resume(self, run: EvaluationRun) -> bool:
        return judge_resume(run).can_resume

    def get_resume_reason(self, run: EvaluationRun) -> str:
        return judge_resume(run).reason

    class Meta:
        model = EvaluationRun
        fields: tuple[str, ...] = (
            "id",
            "model_type",
            "eval_mode",
            "num_samples",
            "num_skipped",
            "exact_match_accuracy",
            "token_precision",
            "token_recall",
            "token_f1",
            "created_at",
            "completed_at",
            "status",
            "adapter",
            "dataset_id",
            "model_name",
            "sample_limit",
            "rows",
            "metrics",
            "error",
            "num_reused",
            "can_resume",
            "resume_reason",
        )


class EvaluationRunListSerializer(serializers.Serializer[Any]):
    runs = EvaluationRunSerializer(many=True)
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total = serializers.IntegerField(help_text="Runs that the filters leave.")
    total_pages = serializers.IntegerField()


class EvaluationRunDetailSerializer(EvaluationRunSerializer):
    metrics = serializers.DictField(  # type: ignore[assignment]
        help_text="all, seen, unseen and classification; null where unknown."
    )
    adapter_path = serializers.CharField(source="adapter.path", default=None, allow_null=True)
    split_adapter = serializers.CharField(source="split_adapter.name", default=None, allow_null=True)
    dataset = serializers.CharField(source="dataset.filename")
    mapping_version = serializers.IntegerField(source="mapping.version")
    eta = serializers.FloatField(source="eta_seconds", allow_null=True)
    elapsed_seconds = serializers.FloatField(allow_null=True)
    rows_per_second = serializers.SerializerMethodField(help_text="From start to end, loading and preparing within.")
    links = serializers.SerializerMethodField(help_text="Paths of what belongs to the run; null: not there yet.")
    generation_params = serializers.DictField()
    metric_options = serializers.DictField(help_text="Metrics with their parameters, normalization, confidence.")
    model_settings = serializers.DictField(help_text="How the base model was loaded.")
    reused_from = serializers.ListField(
        child=serializers.IntegerField(), help_text="The runs that copied answers came from; they may be deleted."
    )
    engine_facts = serializers.DictField(
        help_text="What the answers came from: hash of the weights, backend, device, versions."
    )
    warnings = serializers.ListField(child=serializers.CharField())
    queue_position = serializers.SerializerMethodField()

    class Meta(EvaluationRunSerializer.Meta):
        fields = (
            *EvaluationRunSerializer.Meta.fields,
            "adapter_path",
            "split_adapter",
            "dataset",
            "mapping_version",
            "positive_label",
            "metric_options",
            "generation_params",
            "model_settings",
            "reuse_base_predictions",
            "reused_from",
            "engine_facts",
            "backend",
            "device",
            "current",
            "total",
            "eta",
            "elapsed_seconds",
            "rows_per_second",
            "queue_position",
            "message",
            "warnings",
            "stopped_early",
            "started_at",
            "links",
        )

    def get_rows_per_second(self, run: EvaluationRun) -> float | None:
        return rows_per_second(run)

    def get_links(self, run: EvaluationRun) -> dict[str, str | None]:
        return links_of(run)

    def get_queue_position(self, run: EvaluationRun) -> int | None:
        return queue_position(run) if run.status == run.Status.QUEUED else None


class RunQuerySerializer(StrictSerializer):
    status = serializers.ChoiceField(
        choices=["completed", "all"], default="completed", help_text="`all` adds queued, running and failed runs."
    )
    dataset_id = StrictIntegerField(default=None, allow_null=True, min_value=1, max_value=2**63 - 1)
    adapter = serializers.CharField(
        default=None, allow_null=True, max_length=4096, help_text="Path, name or id of the evaluated adapter."
    )
    model_type = serializers.ChoiceField(default=None, allow_null=True, choices=EvaluationRun.ModelType.choices)
    page = StrictIntegerField(
        default=None, allow_null=True, min_value=1, max_value=MAX_PAGE, help_text="Without page and page_size: all."
    )
    page_size = StrictIntegerField(
        default=None, allow_null=True, min_value=1, max_value=MAX_PAGE_SIZE, help_text=f"{RUNS_A_PAGE} when left out."
    )


class ExportQuerySerializer(StrictSerializer):
    format = serializers.ChoiceField(choices=["csv", "json", "jsonl"], default="csv")
    raw = serializers.BooleanField(default=False, help_text="CSV without the escape of cells that are formulas.")
