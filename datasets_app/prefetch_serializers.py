"""Bodies, query strings and answers of the prefetch and image archive routes."""

from dataclasses import asdict
from typing import Any

from rest_framework import serializers

from datasets_app.archive_members import SHOWN_ERRORS, ArchiveReport
from datasets_app.models import BadImage, Dataset, ImagePrefetch
from datasets_app.serializers import MAX_ID
from ftproject.core.jobs import queue_position
from ftproject.core.pagination import PageSerializer
from ftproject.core.serializers import StrictBooleanField, StrictIntegerField, StrictSerializer


class ArchiveUploadSerializer(serializers.Serializer[Any]):
    file = serializers.FileField(help_text="A zip of PNG, JPEG, WebP, GIF and BMP files, in any folders.")


class MemberProblemSerializer(serializers.Serializer[Any]):
    field = serializers.CharField(help_text="The member's path.")
    code = serializers.CharField()
    message = serializers.CharField()


class ArchiveReportSerializer(serializers.Serializer[Any]):
    dataset_id = serializers.IntegerField()
    stored = serializers.IntegerField(help_text="Paths of images that cells of this dataset may name now.")
    refused = serializers.IntegerField()
    ignored = serializers.IntegerField(help_text="What operating systems add, and repeated members.")
    nested_archives = serializers.IntegerField(help_text="Archives inside the archive, not opened.")
    errors = MemberProblemSerializer(  # type: ignore[assignment]  # DRF takes the field off the class
        many=True, help_text=f"The first {SHOWN_ERRORS} refused members."
    )


def describe_report(dataset: Dataset, report: ArchiveReport) -> dict[str, Any]:
    return {"dataset_id": dataset.pk, **asdict(report), "errors": [problem.as_dict() for problem in report.errors]}


class StartPrefetchSerializer(StrictSerializer):
    dataset_id = StrictIntegerField(
        default=None, allow_null=True, min_value=1, max_value=MAX_ID, help_text="Default: the current dataset."
    )
    retry_failed = StrictBooleanField(
        default=False, help_text="Ask URLs again that failed within the last QWEN3VL_IMAGE_RETRY_SECONDS."
    )


class PrefetchStartedSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["started", "queued"])
    run_id = serializers.IntegerField()
    queue_position = serializers.IntegerField(required=False, help_text="Only when queued; 1 is next.")
    dataset_id = serializers.IntegerField()


def describe_start(run: ImagePrefetch, position: int | None) -> dict[str, Any]:
    waits = {} if position is None else {"queue_position": position}
    status = "started" if position is None else "queued"
    return {"status": status, "run_id": run.pk, **waits, "dataset_id": run.dataset_id}


class PrefetchSerializer(serializers.ModelSerializer[ImagePrefetch]):
    run_id = serializers.IntegerField(source="pk", read_only=True)
    dataset_id = serializers.IntegerField(read_only=True)
    current = serializers.IntegerField(help_text="Rows whose images are there or known to fail.")
    total = serializers.IntegerField(help_text="Rows of the dataset.")
    num_images = serializers.IntegerField(help_text="Images of these rows; one that many rows share counts in each.")
    elapsed_seconds = serializers.FloatField(allow_null=True)
    queue_position = serializers.SerializerMethodField()

    class Meta:
        model = ImagePrefetch
        fields = (
            "run_id",
            "dataset_id",
            "status",
            "current",
            "total",
            "num_images",
            "num_failed",
            "retry_failed",
            "stopped_early",
            "queue_position",
            "message",
            "error",
            "elapsed_seconds",
            "created_at",
            "started_at",
            "completed_at",
        )

    def get_queue_position(self, run: ImagePrefetch) -> int | None:
        return queue_position(run) if run.status == run.Status.QUEUED else None


class PrefetchQuerySerializer(PageSerializer):
    dataset_id = StrictIntegerField(required=False, min_value=1, max_value=MAX_ID, help_text="Default: every dataset.")


class PrefetchListSerializer(serializers.Serializer[Any]):
    runs = PrefetchSerializer(many=True)
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total = serializers.IntegerField()
    total_pages = serializers.IntegerField()


class PrefetchStopSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["stopping", "cancelled"])
    run_id = serializers.IntegerField()
    message = serializers.CharField()


def describe_stop(run: ImagePrefetch) -> dict[str, Any]:
    if run.is_terminal:
        return {"status": "cancelled", "run_id": run.pk, "message": f"Run {run.pk} was taken out of the queue."}
    return {"status": "stopping", "run_id": run.pk, "message": run.message}


class BadImageSerializer(serializers.ModelSerializer[BadImage]):
    index = serializers.IntegerField(help_text="The row, counted from 0 as in the samples.")

    class Meta:
        model = BadImage
        fields = ("index", "column", "url", "code", "message")


class BadImagePageSerializer(serializers.Serializer[Any]):
    bad_rows = BadImageSerializer(many=True)
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total = serializers.IntegerField()
    total_pages = serializers.IntegerField()


def describe_page(page: Any) -> dict[str, Any]:
    return {"page": page.page, "page_size": page.page_size, "total": page.total, "total_pages": page.total_pages}
