"""Bodies and answers of the preflight routes."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from datasets_app.models import PreflightRun
from datasets_app.preflight_services import StartedPreflight
from datasets_app.serializers import MAX_ID
from ftproject.core.jobs import queue_position
from ftproject.core.serializers import StrictIntegerField, StrictSerializer

LONGEST_WAIT = 300
CONFIG_KEYS = ("model_config_data", "sft_config", "lora_config", "holdout_fraction", "holdout_seed", "holdout_stratify")
AS_IN_TRAINING = "As in POST /api/training/start; GET /api/training/schema lists its fields."


class StartPreflightSerializer(StrictSerializer):
    """The training keys are checked by the code that reads a training start."""

    dataset_id = StrictIntegerField(
        default=None, allow_null=True, min_value=1, max_value=MAX_ID, help_text="Default: the current dataset."
    )
    wait_seconds = StrictIntegerField(
        default=30, min_value=0, max_value=LONGEST_WAIT, help_text="Answer 202 when there is no report by then."
    )
    model_config_data = serializers.JSONField(required=False, help_text=AS_IN_TRAINING)
    sft_config = serializers.JSONField(required=False, help_text=AS_IN_TRAINING)
    lora_config = serializers.JSONField(required=False, help_text=AS_IN_TRAINING)
    holdout_fraction = serializers.JSONField(required=False, help_text=AS_IN_TRAINING)
    holdout_seed = serializers.JSONField(required=False, help_text=AS_IN_TRAINING)
    holdout_stratify = serializers.JSONField(required=False, help_text=AS_IN_TRAINING)


class SkipReasonSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField()
    count = serializers.IntegerField()
    rows = serializers.ListField(child=serializers.IntegerField(), help_text="The first ten.")


class RowCountsSerializer(serializers.Serializer[Any]):
    total = serializers.IntegerField()
    usable = serializers.IntegerField(help_text="Rows that training or its held-out evaluation would use.")
    skipped = serializers.IntegerField()
    reasons = SkipReasonSerializer(many=True)


class ImageFailureSerializer(serializers.Serializer[Any]):
    row = serializers.IntegerField()
    column = serializers.CharField()
    code = serializers.CharField()
    message = serializers.CharField()


class ImagesSerializer(serializers.Serializer[Any]):
    ready = serializers.IntegerField()
    failed = serializers.IntegerField()
    rows_with_failures = serializers.IntegerField()
    codes = serializers.DictField(child=serializers.IntegerField())
    failures = ImageFailureSerializer(many=True, help_text="The first 50.")
    not_fetched = serializers.DictField(help_text="images, rows, first_rows, hint.")


class HistogramBinSerializer(serializers.Serializer[Any]):
    rows = serializers.IntegerField()

    def get_fields(self) -> dict[str, Any]:
        # `from` is a word of Python's own.
        return {"from": serializers.FloatField(), "to": serializers.FloatField(), **super().get_fields()}


class TokensSerializer(serializers.Serializer[Any]):
    reason = serializers.CharField(allow_null=True, help_text="Why nothing was counted.")
    counted = serializers.IntegerField()
    not_counted = serializers.IntegerField(required=False, help_text="Rows with an image that is not fetched yet.")
    min = serializers.IntegerField(required=False, allow_null=True)
    median = serializers.IntegerField(required=False, allow_null=True)
    mean = serializers.FloatField(required=False, allow_null=True)
    p90 = serializers.IntegerField(required=False, allow_null=True)
    p99 = serializers.IntegerField(required=False, allow_null=True)
    max = serializers.IntegerField(required=False, allow_null=True)
    total = serializers.IntegerField(required=False)
    text = serializers.IntegerField(required=False)
    vision = serializers.IntegerField(required=False)
    histogram = HistogramBinSerializer(many=True, required=False)


class RemediesSerializer(serializers.Serializer[Any]):
    raise_max_seq_length = serializers.DictField(help_text="max_seq_length, rescues, possible, model_limit.")
    lower_max_pixels = serializers.DictField(
        allow_null=True, help_text="max_pixels, rescues, judged_rows, options; null when no row can be rescued so."
    )
    drop_rows = serializers.DictField(help_text="rows, rows_left.")


class TooLongSerializer(serializers.Serializer[Any]):
    max_seq_length = serializers.IntegerField()
    count = serializers.IntegerField()
    rows = serializers.ListField(child=serializers.IntegerField(), help_text="The first hundred.")
    remedies = RemediesSerializer(allow_null=True)


class RepeatsSerializer(serializers.Serializer[Any]):
    groups = serializers.IntegerField()
    extra_rows = serializers.IntegerField(help_text="Rows beside the first of each group.")
    examples = serializers.ListField(child=serializers.DictField(), help_text="count, rows.")


class ConflictsSerializer(serializers.Serializer[Any]):
    groups = serializers.IntegerField()
    rows = serializers.IntegerField()
    examples = serializers.ListField(child=serializers.DictField(), help_text="count, rows, distinct_answers, answers.")


class LabelSerializer(serializers.Serializer[Any]):
    label = serializers.CharField()  # type: ignore[assignment]  # DRF takes the field off the class
    count = serializers.IntegerField()
    share = serializers.FloatField()


class LabelsSerializer(serializers.Serializer[Any]):
    column = serializers.CharField()
    distinct = serializers.IntegerField()
    complete = serializers.BooleanField(help_text="False: only the ten commonest are listed.")
    labels = LabelSerializer(many=True)
    majority_share = serializers.FloatField(
        allow_null=True, help_text="What always answering the commonest answer would score in exact match."
    )


class EmptyAnswersSerializer(serializers.Serializer[Any]):
    count = serializers.IntegerField()
    rows = serializers.ListField(child=serializers.IntegerField())


class SplitSerializer(serializers.Serializer[Any]):
    holdout_fraction = serializers.FloatField()
    holdout_seed = serializers.IntegerField()
    holdout_stratify = serializers.BooleanField()
    train_rows = serializers.IntegerField()
    heldout_rows = serializers.IntegerField()


class TimeSerializer(serializers.Serializer[Any]):
    steps = serializers.IntegerField()
    rows = serializers.IntegerField()
    tokens = serializers.IntegerField(allow_null=True)
    seconds = serializers.FloatField(allow_null=True)
    how = serializers.CharField()


class MemoryTermSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    mb = serializers.FloatField()
    how = serializers.CharField()


class MemorySerializer(serializers.Serializer[Any]):
    total_mb = serializers.IntegerField(allow_null=True)
    device_mb = serializers.IntegerField(allow_null=True)
    fits = serializers.BooleanField(allow_null=True)
    terms = MemoryTermSerializer(many=True)
    measured = serializers.DictField(allow_null=True, help_text="run_id, peak_mb of the newest run of the same model.")
    how = serializers.CharField()


class DiskSerializer(serializers.Serializer[Any]):
    needed_mb = serializers.FloatField(allow_null=True)
    wanted_free_mb = serializers.IntegerField(help_text="Below it a start is refused or may fail.")
    free_mb = serializers.IntegerField()
    enough = serializers.BooleanField()
    how = serializers.CharField()


class BlockerSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    message = serializers.CharField()


class ReportSerializer(serializers.Serializer[Any]):
    can_train = serializers.BooleanField()
    dataset_id = serializers.IntegerField()
    mapping_version = serializers.IntegerField()
    model_name = serializers.CharField()
    device = serializers.CharField()
    rows = RowCountsSerializer()
    images = ImagesSerializer()
    tokens = TokensSerializer()
    too_long = TooLongSerializer()
    duplicates = RepeatsSerializer()
    conflicts = ConflictsSerializer()
    labels = LabelsSerializer()
    empty_answers = EmptyAnswersSerializer()
    split = SplitSerializer()
    time = TimeSerializer()
    memory = MemorySerializer()
    disk = DiskSerializer()
    blockers = BlockerSerializer(many=True)
    warnings = serializers.ListField(child=serializers.CharField())


class PreflightAnswerSerializer(serializers.Serializer[Any]):
    """The report, when it was there in time."""

    status = serializers.ChoiceField(choices=["completed"])
    run_id = serializers.IntegerField()
    reused = serializers.BooleanField(help_text="True: an earlier report that still holds.")
    report = ReportSerializer()


class PreflightPendingSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=PreflightRun.Status.values)
    run_id = serializers.IntegerField()
    reused = serializers.BooleanField()
    current_row = serializers.IntegerField()
    total_rows = serializers.IntegerField()
    queue_position = serializers.IntegerField(required=False, help_text="Only while it waits; 1 is next.")


class PreflightSerializer(serializers.ModelSerializer[PreflightRun]):
    run_id = serializers.IntegerField(source="pk", read_only=True)
    dataset_id = serializers.IntegerField(read_only=True)
    mapping_version = serializers.IntegerField(source="mapping.version", read_only=True)
    total_rows = serializers.IntegerField(source="dataset.num_rows", read_only=True)
    elapsed_seconds = serializers.FloatField(allow_null=True, read_only=True)
    config = serializers.DictField(help_text="The effective configuration that the rows were judged by.")
    report = serializers.SerializerMethodField()

    class Meta:
        model = PreflightRun
        fields = (
            "run_id",
            "status",
            "dataset_id",
            "mapping_version",
            "model_name",
            "config",
            "current_row",
            "total_rows",
            "message",
            "error",
            "elapsed_seconds",
            "created_at",
            "started_at",
            "completed_at",
            "report",
        )
        read_only_fields = fields

    @extend_schema_field(ReportSerializer(allow_null=True))
    def get_report(self, run: PreflightRun) -> dict[str, Any] | None:
        return run.report


class PreflightStopSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["stopping", "cancelled"])
    run_id = serializers.IntegerField()
    message = serializers.CharField()


def describe_answer(started: StartedPreflight) -> dict[str, Any]:
    run = started.run
    facts = {"status": str(run.status), "run_id": run.pk, "reused": started.reused}
    if run.report is not None:
        return facts | {"report": run.report}
    place = queue_position(run) if run.status == run.Status.QUEUED else None
    waits = {} if place is None else {"queue_position": place}
    return facts | {"current_row": run.current_row, "total_rows": run.dataset.num_rows, **waits}


def describe_stop(run: PreflightRun) -> dict[str, Any]:
    if run.is_terminal:
        return {"status": "cancelled", "run_id": run.pk, "message": f"Preflight {run.pk} was taken out of the queue."}
    return {"status": "stopping", "run_id": run.pk, "message": run.message}
