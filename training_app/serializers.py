"""What training requests may hold and what its answers look like."""

from typing import Any

from rest_framework import serializers
from rest_framework.request import Request

from ftproject.core.errors import InvalidInputError, Problem
from ftproject.core.pagination import PageSerializer
from ftproject.core.serializers import StrictIntegerField
from ftproject.engine.adapters import read_adapter_info
from ftproject.engine.configs import to_dict
from training_app.configuration import LARGEST_ID
from training_app.models import Adapter, TrainingMetric, TrainingRun
from training_app.services import StartedRun, TrainingPlan

LONGEST_KEY = 200


class RunListQuerySerializer(PageSerializer):
    """Which runs to list."""

    status = serializers.ChoiceField(choices=TrainingRun.Status.values, required=False)
    dataset_id = StrictIntegerField(required=False, min_value=1, max_value=LARGEST_ID)


class StartedSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(["started", "queued", "dry_run"])
    run_id = serializers.IntegerField(required=False, help_text="Absent in a dry run.")
    queue_position = serializers.IntegerField(required=False, help_text="Only while the run waits.")
    model_name = serializers.CharField()
    device = serializers.CharField()
    warnings = serializers.ListField(child=serializers.CharField())
    backend = serializers.CharField(required=False)
    dataset_id = serializers.IntegerField(required=False)
    config = serializers.DictField(required=False, help_text="Only in a dry run: the effective configuration.")
    preflight = serializers.DictField(
        required=False, help_text="Only in a dry run: the figures of POST /api/datasets/preflight without its lists."
    )


class TrainingStatusSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(["idle", *TrainingRun.Status.values])
    run_id = serializers.IntegerField(allow_null=True)
    current_step = serializers.IntegerField(allow_null=True)
    total_steps = serializers.IntegerField(allow_null=True)
    epoch = serializers.FloatField(allow_null=True)
    loss = serializers.FloatField(allow_null=True)
    learning_rate = serializers.FloatField(allow_null=True)
    grad_norm = serializers.FloatField(allow_null=True)
    eval_loss = serializers.FloatField(allow_null=True)
    eta_seconds = serializers.FloatField(allow_null=True)
    elapsed_seconds = serializers.FloatField(allow_null=True)
    message = serializers.CharField(allow_null=True)
    error = serializers.CharField(allow_null=True)
    adapter_path = serializers.CharField(allow_null=True)
    eval_exact_match = serializers.FloatField(allow_null=True, help_text="Of held-out rows answered while training.")
    eval_token_f1 = serializers.FloatField(allow_null=True)
    best_step = serializers.IntegerField(allow_null=True, help_text="Step of the lowest held-out loss.")
    stopped_early = serializers.BooleanField(allow_null=True)
    resumed_from = serializers.IntegerField(allow_null=True, help_text="The run that this one continues.")
    resumed_step = serializers.IntegerField(allow_null=True, help_text="The step that it continues from.")
    can_resume = serializers.BooleanField(allow_null=True)
    resume_reason = serializers.CharField(allow_null=True, help_text="From which step, or why not.")
    queue_position = serializers.IntegerField(allow_null=True)


class StoppedSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(["stopping", "cancelled"])
    run_id = serializers.IntegerField()
    message = serializers.CharField()


class AdapterSerializer(serializers.ModelSerializer[Adapter]):
    path = serializers.CharField()
    run_id = serializers.IntegerField(allow_null=True)

    class Meta:
        model = Adapter
        fields = ["id", "name", "path", "created_at", "run_id", "base_model_name", "r", "size_bytes", "effective"]
        read_only_fields = fields


class AdapterDetailSerializer(AdapterSerializer):
    class Meta(AdapterSerializer.Meta):
        fields = [*AdapterSerializer.Meta.fields, "sha256"]
        read_only_fields = fields


class AdapterPageSerializer(AdapterDetailSerializer):
    provenance = serializers.SerializerMethodField(help_text="What provenance.json says of how it was made.")

    class Meta(AdapterDetailSerializer.Meta):
        fields = [*AdapterDetailSerializer.Meta.fields, "provenance"]
        read_only_fields = fields

    def get_provenance(self, adapter: Adapter) -> dict[str, Any]:
        return read_adapter_info(adapter.path).provenance


class AdapterListSerializer(serializers.Serializer[Any]):
    adapters = AdapterSerializer(many=True)


class RunSerializer(TrainingStatusSerializer):
    """The status fields of a run and everything that was known when it started."""

    id = serializers.IntegerField()
    dataset_id = serializers.IntegerField()
    dataset = serializers.CharField(help_text="The uploaded file's name.")
    mapping_id = serializers.IntegerField()
    model_name = serializers.CharField()
    device = serializers.CharField()
    backend = serializers.CharField()
    adapter = serializers.CharField(allow_null=True)
    num_train_rows = serializers.IntegerField(allow_null=True)
    num_heldout_rows = serializers.IntegerField(allow_null=True)
    num_skipped_rows = serializers.IntegerField(allow_null=True)
    warnings = serializers.ListField(child=serializers.CharField())
    metrics = serializers.DictField()
    created_at = serializers.DateTimeField()
    started_at = serializers.DateTimeField(allow_null=True)
    completed_at = serializers.DateTimeField(allow_null=True)


class RunDetailSerializer(RunSerializer):
    requested_config = serializers.DictField(help_text="The body as it was sent.")
    config = serializers.DictField(help_text="The effective configuration.")
    versions = serializers.DictField(help_text="Of the packages that decide a result; empty before the run has begun.")
    reproduce = serializers.DictField(
        help_text="The run as a recipe: body, curl lines, command; dataset hash, mapping, split, seed, versions."
    )


class RunListSerializer(serializers.Serializer[Any]):
    runs = RunSerializer(many=True)
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total = serializers.IntegerField()
    total_pages = serializers.IntegerField()


class MetricSerializer(serializers.ModelSerializer[TrainingMetric]):
    class Meta:
        model = TrainingMetric
        fields = [
            "step",
            "epoch",
            "loss",
            "learning_rate",
            "grad_norm",
            "eval_loss",
            "eval_exact_match",
            "eval_token_f1",
            "created_at",
        ]
        read_only_fields = fields


class MetricListSerializer(serializers.Serializer[Any]):
    run_id = serializers.IntegerField()
    metrics = MetricSerializer(many=True)


class EventListSerializer(serializers.Serializer[Any]):
    run_id = serializers.IntegerField()
    events = serializers.ListField(child=serializers.DictField())


def read_idempotency_key(request: Request) -> str | None:
    """The Idempotency-Key header, or None when there is none."""
    key = str(request.headers.get("Idempotency-Key", "")).strip()
    if len(key) > LONGEST_KEY or not key.isprintable():
        message = f"must be at most {LONGEST_KEY} printable characters"
        problem = Problem(code="invalid_header", message=message, field="Idempotency-Key")
        raise InvalidInputError(f"The header Idempotency-Key {message}.", code="invalid_header", errors=[problem])
    return key or None


def describe_start(started: StartedRun) -> dict[str, Any]:
    run = started.run
    position = {"queue_position": started.position} if started.waits else {}
    facts = {"model_name": run.model_name, "device": run.device, "warnings": run.warnings}
    return {"status": "queued" if started.waits else "started", "run_id": run.pk, **position, **facts}


def describe_plan(plan: TrainingPlan) -> dict[str, Any]:
    return {
        "status": "dry_run",
        "model_name": plan.effective.model_name,
        "device": plan.device,
        "warnings": plan.effective.warnings,
        "backend": plan.effective.backend,
        "dataset_id": plan.dataset.pk,
        "config": to_dict(plan.effective.config),
    }


def describe_stop(run: TrainingRun) -> dict[str, Any]:
    if run.is_terminal:
        message = f"Run {run.pk} had not started; it was taken out of the queue."
        return {"status": "cancelled", "run_id": run.pk, "message": message}
    return {"status": "stopping", "run_id": run.pk, "message": run.message}
