"""What a merge is asked for, and what the answers about merges look like."""

from typing import Any

from rest_framework import serializers

from ftproject.core.jobs import queue_position
from ftproject.core.pagination import Page
from ftproject.core.serializers import StrictCharField, StrictSerializer
from training_app.merge_services import NAME_RULE, SUFFIX, StartedMerge
from training_app.models import AdapterMerge


class StartMergeSerializer(StrictSerializer):
    model_name = StrictCharField(
        default=None,
        allow_null=True,
        max_length=200,
        help_text=f"Name of the merged model; null: the adapter's with {SUFFIX}. {NAME_RULE.capitalize()}.",
    )


class MergeStartedSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(["started", "queued"])
    merge_id = serializers.IntegerField()
    queue_position = serializers.IntegerField(required=False, help_text="Only while the merge waits.")
    adapter = serializers.CharField()
    model_name = serializers.CharField()
    warnings = serializers.ListField(child=serializers.CharField())


class MergeStoppedSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(["stopping", "cancelled"])
    merge_id = serializers.IntegerField()
    message = serializers.CharField()


class MergeSerializer(serializers.ModelSerializer[AdapterMerge]):
    adapter = serializers.CharField(source="adapter_name")
    adapter_id = serializers.IntegerField(allow_null=True, help_text="Null once the adapter was deleted.")
    model_path = serializers.SerializerMethodField()
    queue_position = serializers.SerializerMethodField()
    elapsed_seconds = serializers.FloatField(allow_null=True)
    result = serializers.DictField(help_text="Size, modules, where the weights came from, and the check.")
    warnings = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = AdapterMerge
        fields = (
            "id",
            "status",
            "adapter",
            "adapter_id",
            "base_model_name",
            "model_name",
            "model_path",
            "current",
            "total",
            "queue_position",
            "elapsed_seconds",
            "message",
            "error",
            "warnings",
            "result",
            "created_at",
            "started_at",
            "completed_at",
        )
        read_only_fields = fields

    def get_model_path(self, merge: AdapterMerge) -> str | None:
        """The folder, once it is complete."""
        return str(merge.path) if merge.status == merge.Status.COMPLETED else None

    def get_queue_position(self, merge: AdapterMerge) -> int | None:
        return queue_position(merge) if merge.status == merge.Status.QUEUED else None


class MergeListSerializer(serializers.Serializer[Any]):
    merges = MergeSerializer(many=True)
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total = serializers.IntegerField()
    total_pages = serializers.IntegerField()


def describe_merge_start(started: StartedMerge) -> dict[str, Any]:
    merge = started.merge
    position = {"queue_position": started.position} if started.waits else {}
    facts = {"adapter": merge.adapter_name, "model_name": merge.model_name, "warnings": merge.warnings}
    return {"status": "queued" if started.waits else "started", "merge_id": merge.pk, **position, **facts}


def describe_merge_stop(merge: AdapterMerge) -> dict[str, Any]:
    if merge.is_terminal:
        message = f"Merge {merge.pk} had not started; it was taken out of the queue."
        return {"status": "cancelled", "merge_id": merge.pk, "message": message}
    return {"status": "stopping", "merge_id": merge.pk, "message": merge.message}


def describe_merges(page: Page, merges: list[AdapterMerge]) -> dict[str, Any]:
    place = {"page": page.page, "page_size": page.page_size, "total": page.total, "total_pages": page.total_pages}
    return {"merges": MergeSerializer(merges, many=True).data, **place}
