"""Datasets and mappings in the admin: read-only facts, links to the runs, delete through the same service."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin import ModelAdmin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

from datasets_app.models import BadImage, ColumnMapping, Dataset, ImageArchiveEntry, ImagePrefetch, PreflightRun
from datasets_app.services import dataset_activate, dataset_delete
from ftproject.core.errors import ProductError

if TYPE_CHECKING:
    AnyModelAdmin = ModelAdmin[Any]
else:  # generic only in its stubs
    AnyModelAdmin = ModelAdmin


class ReadOnlyAdmin(AnyModelAdmin):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Dataset)
class DatasetAdmin(ReadOnlyAdmin):
    list_display = (
        "filename",
        "num_rows",
        "num_columns",
        "format",
        "encoding",
        "size_bytes",
        "is_current",
        "runs",
        "created_at",
    )
    list_filter = ("is_current", "format", "encoding", "created_at")
    search_fields = ("filename", "sha256")
    actions = ("make_current", "delete_datasets")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        counts = {
            "trainings": Count("training_runs", distinct=True),
            "evaluations": Count("evaluation_runs", distinct=True),
        }
        datasets: QuerySet[Any] = super().get_queryset(request).annotate(**counts)
        return datasets

    @admin.display(description="Runs")
    def runs(self, dataset: Any) -> str:
        """Links to the dataset's runs; reversed by name, because this app knows nothing of the apps above it."""
        return format_html(
            '<a href="{}?dataset__id__exact={}">{} training</a>, <a href="{}?dataset__id__exact={}">{} evaluation</a>',
            reverse("admin:training_app_trainingrun_changelist"),
            dataset.pk,
            dataset.trainings,
            reverse("admin:evaluation_app_evaluationrun_changelist"),
            dataset.pk,
            dataset.evaluations,
        )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Only the action deletes: Django's own delete would bypass the service and leave the file.
        return False

    @admin.action(description="Make the current dataset")
    def make_current(self, request: HttpRequest, queryset: QuerySet[Dataset]) -> None:
        if queryset.count() != 1:
            self.message_user(request, "Choose exactly one dataset.", messages.ERROR)
            return
        dataset = dataset_activate(dataset=queryset.get())
        self.message_user(request, f"{dataset} is current.")

    @admin.action(description="Delete datasets with their rows")
    def delete_datasets(self, request: HttpRequest, queryset: QuerySet[Dataset]) -> None:
        for dataset in queryset:
            try:
                dataset_delete(dataset=dataset)
            except ProductError as exc:
                self.message_user(request, f"{exc.detail} {exc.hint}", messages.ERROR)
            else:
                self.message_user(request, f"Deleted {dataset.filename}.")


@admin.register(ColumnMapping)
class ColumnMappingAdmin(ReadOnlyAdmin):
    list_display = (
        "dataset",
        "version",
        "prompt_column",
        "response_column",
        "ground_truth_column",
        "image_url_columns",
        "mandatory_columns",
        "created_at",
    )
    list_filter = ("created_at",)
    list_select_related = ("dataset",)
    search_fields = ("dataset__filename", "prompt_column", "response_column")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class UndeletableAdmin(ReadOnlyAdmin):
    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(ImageArchiveEntry)
class ImageArchiveEntryAdmin(UndeletableAdmin):
    list_display = ("path", "dataset", "digest")
    list_select_related = ("dataset",)
    search_fields = ("path", "=digest", "dataset__filename")
    fields = ("dataset", "path", "digest")
    show_full_result_count = False


@admin.register(ImagePrefetch)
class ImagePrefetchAdmin(UndeletableAdmin):
    list_display = ("id", "dataset", "status", "current", "total", "num_images", "bad", "stopped_early", "created_at")
    list_filter = ("status", "stopped_early", "created_at")
    list_select_related = ("dataset",)
    search_fields = ("dataset__filename", "message", "error")

    @admin.display(description="Failed", ordering="num_failed")
    def bad(self, run: ImagePrefetch) -> str:
        """A link to the images that failed."""
        address = reverse("admin:datasets_app_badimage_changelist")
        return format_html('<a href="{}?run__id__exact={}">{}</a>', address, run.pk, run.num_failed)


@admin.register(BadImage)
class BadImageAdmin(UndeletableAdmin):
    list_display = ("run", "index", "column", "url", "code", "message")
    list_filter = ("code",)
    list_select_related = ("run",)
    search_fields = ("url", "message", "column")
    show_full_result_count = False


@admin.register(PreflightRun)
class PreflightRunAdmin(UndeletableAdmin):
    list_display = ("id", "dataset", "model_name", "status", "can_train", "usable", "created_at")
    list_filter = ("status", "model_name", "created_at")
    list_select_related = ("dataset",)
    search_fields = ("dataset__filename", "model_name", "message", "error")

    @admin.display(description="Can train", boolean=True)
    def can_train(self, run: PreflightRun) -> bool | None:
        return run.report["can_train"] if run.report else None

    @admin.display(description="Usable rows")
    def usable(self, run: PreflightRun) -> int | None:
        return run.report["rows"]["usable"] if run.report else None
