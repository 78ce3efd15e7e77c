"""What the system routes answer."""

from typing import Any

from django.db.models import QuerySet
from rest_framework import serializers

from ftproject.core.models import AuditEntry
from ftproject.core.pagination import Page, PageSerializer
from ftproject.core.serializers import StrictCharField


class HealthSerializer(serializers.Serializer[Any]):
    status = serializers.CharField(help_text="ok: the server and its database answer.")
    version = serializers.CharField()
    database = serializers.CharField(help_text="The kind of database, which has just answered.")
    queue_worker = serializers.BooleanField(help_text="Whether a worker of the GPU queue was seen in the last seconds.")
    device = serializers.CharField(help_text="The GPU's name, or cpu.")
    default_model_name = serializers.CharField(allow_null=True, help_text="The base of requests that name none.")


class GpuFactsSerializer(serializers.Serializer[Any]):
    device_name = serializers.CharField(allow_null=True)
    memory_total_mb = serializers.IntegerField(allow_null=True)
    memory_used_mb = serializers.IntegerField(allow_null=True)
    memory_free_mb = serializers.IntegerField(allow_null=True)
    utilization_percent = serializers.IntegerField(allow_null=True)
    temperature_c = serializers.IntegerField(allow_null=True)
    power_w = serializers.FloatField(allow_null=True)


class GpuDeviceSerializer(GpuFactsSerializer):
    index = serializers.IntegerField()


class GpuSerializer(GpuFactsSerializer):
    available = serializers.BooleanField()
    devices = GpuDeviceSerializer(many=True)


class ModelStatusSerializer(serializers.Serializer[Any]):
    loaded = serializers.BooleanField()
    mode = serializers.CharField(allow_null=True, help_text="base or finetuned: which gave the last answer.")
    adapter = serializers.CharField(allow_null=True)
    model_name = serializers.CharField(allow_null=True)
    device = serializers.CharField(allow_null=True)
    memory_mb = serializers.IntegerField(allow_null=True)
    since = serializers.DateTimeField(allow_null=True)
    remote = serializers.DictField(
        allow_null=True, help_text="host, reachable and reason of the server of QWEN3VL_INFERENCE_URL; null: our own."
    )
    loading_percent = serializers.IntegerField(allow_null=True, help_text="An estimate while it loads; 100: loaded.")
    gpu_holder = serializers.CharField(
        allow_null=True, help_text="training:ID, evaluation:ID or inference:... while somebody has the GPU."
    )


class UnloadedSerializer(serializers.Serializer[Any]):
    status = serializers.CharField(help_text="unloaded, also when nothing was loaded.")


class AuditQuerySerializer(PageSerializer):
    caller_kind = serializers.ChoiceField(AuditEntry.CallerKind.choices, required=False)
    caller = StrictCharField(required=False, max_length=150, help_text="A key's prefix, an admin's or a user's name.")


class AuditEntrySerializer(serializers.ModelSerializer[AuditEntry]):
    ids = serializers.DictField(help_text="Ids of the path and of the answer; a command's options.")

    class Meta:
        model = AuditEntry
        fields = ("id", "at", "caller_kind", "caller", "method", "route", "path", "ids", "status")


class AuditPageSerializer(serializers.Serializer[Any]):
    entries = AuditEntrySerializer(many=True)
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total = serializers.IntegerField()
    total_pages = serializers.IntegerField()


def describe_audit_page(entries: QuerySet[AuditEntry], page: Page) -> dict[str, Any]:
    shown = entries[page.offset : page.offset + page.page_size]
    return {
        "entries": AuditEntrySerializer(shown, many=True).data,
        "page": page.page,
        "page_size": page.page_size,
        "total": page.total,
        "total_pages": page.total_pages,
    }
