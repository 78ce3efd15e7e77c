"""The admin's pages of training runs, logged steps and adapters: facts to read, stop and delete as actions."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from django.contrib import admin, messages
from django.contrib.admin import ModelAdmin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ftproject.core.errors import ProductError
from training_app.adapter_services import delete_adapter
from training_app.merge_services import merge_delete, merge_stop
from training_app.models import Adapter, AdapterMerge, TrainingMetric, TrainingRun
from training_app.resume import resume_training
from training_app.selectors import adapter_of
from training_app.services import delete_run, stop_training

AnyModel = TypeVar("AnyModel", bound=Model)
if TYPE_CHECKING:
    AnyModelAdmin = ModelAdmin[Any]
else:  # generic only in its stubs
    AnyModelAdmin = ModelAdmin


def link_to(row: Model | None) -> SafeString | str:
    """A link to a row's own admin page."""
    if row is None:
        return "-"
    meta = row._meta
    try:
        url = reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])
    except NoReverseMatch:
        return str(row)
    return format_html('<a href="{}">{}</a>', url, row)


def all_field_names(model: type[Model]) -> list[Any]:
    return [field.name for field in model._meta.fields]


def act_on_each(request: HttpRequest, rows: QuerySet[AnyModel], act: Callable[[AnyModel], str]) -> None:
    """Calls the service for each row and shows its word, or its refusal, as a message."""
    for row in rows:
        try:
            messages.success(request, act(row))
        except ProductError as error:
            messages.error(request, f"{error.detail} {error.hint}".strip())


def stop(run: TrainingRun) -> str:
    return f"Run {run.pk}: {stop_training(run=run).status}."


def go_on(run: TrainingRun) -> str:
    started = resume_training(run=run)
    return f"Run {started.run.pk} continues run {run.pk} from step {started.run.resumed_step}."


def remove_run(run: TrainingRun) -> str:
    number = run.pk
    delete_run(run=run)
    return f"Run {number} is deleted."


def stop_one_merge(merge: AdapterMerge) -> str:
    return f"Merge {merge.pk}: {merge_stop(merge=merge).status}."


def remove_merge(merge: AdapterMerge) -> str:
    number = merge.pk
    merge_delete(merge=merge)
    return f"Merge {number} is deleted."


def remove_adapter(adapter: Adapter) -> str:
    delete_adapter(adapter=adapter)
    return f"Adapter {adapter.name} is deleted."


class ReadOnlyAdmin(AnyModelAdmin):
    """Facts of the past: nobody adds or edits them, and Django's own bulk delete would go past the services."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return obj is None and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(TrainingRun)
class TrainingRunAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "status",
        "model_name",
        "device",
        "dataset_link",
        "steps",
        "loss",
        "eval_loss",
        "adapter_link",
        "stopped_early",
        "created_at",
        "elapsed_seconds",
    )
    list_filter = ("status", "stopped_early", "backend", "model_name", "created_at")
    search_fields = ("model_name", "message", "error", "dataset__filename", "adapter__name")
    list_select_related = ("dataset", "adapter")
    date_hierarchy = "created_at"
    actions = ("stop_runs", "resume_runs", "delete_runs")
    readonly_fields = (*all_field_names(TrainingRun), "dataset_link", "adapter_link", "metrics_link")
    fields = readonly_fields

    @admin.display(description="step")
    def steps(self, run: TrainingRun) -> str:
        return f"{run.current_step} / {run.total_steps or '?'}"

    @admin.display(description="dataset")
    def dataset_link(self, run: TrainingRun) -> str:
        return link_to(run.dataset)

    @admin.display(description="adapter")
    def adapter_link(self, run: TrainingRun) -> str:
        return link_to(adapter_of(run))

    @admin.display(description="logged steps")
    def metrics_link(self, run: TrainingRun) -> str:
        url = reverse("admin:training_app_trainingmetric_changelist")
        return format_html('<a href="{}?run__id__exact={}">all logged steps</a>', url, run.pk)

    @admin.action(description="Stop the selected runs (gracefully; waiting ones are cancelled)", permissions=["change"])
    def stop_runs(self, request: HttpRequest, queryset: QuerySet[TrainingRun]) -> None:
        act_on_each(request, queryset, stop)

    @admin.action(description="Resume the selected runs from their last checkpoints", permissions=["change"])
    def resume_runs(self, request: HttpRequest, queryset: QuerySet[TrainingRun]) -> None:
        act_on_each(request, queryset, go_on)

    @admin.action(description="Delete the selected runs", permissions=["remove"])
    def delete_runs(self, request: HttpRequest, queryset: QuerySet[TrainingRun]) -> None:
        act_on_each(request, queryset.select_related("adapter"), remove_run)

    def has_remove_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("training_app.delete_trainingrun")


@admin.register(TrainingMetric)
class TrainingMetricAdmin(ReadOnlyAdmin):
    list_display = ("run_link", "step", "epoch", "loss", "learning_rate", "grad_norm", "eval_loss", "created_at")
    list_filter = ("run__status", "run__model_name")
    search_fields = ("=run__id",)
    list_select_related = ("run",)
    fields = readonly_fields = all_field_names(TrainingMetric)

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "run__id__exact" or super().lookup_allowed(lookup, value, request)

    @admin.display(description="run", ordering="run_id")
    def run_link(self, metric: TrainingMetric) -> str:
        return link_to(metric.run)


@admin.register(Adapter)
class AdapterAdmin(ReadOnlyAdmin):
    list_display = ("name", "base_model_name", "r", "size_mb", "effective", "run_link", "evaluations", "created_at")
    list_filter = ("effective", "base_model_name", "created_at")
    search_fields = ("name", "base_model_name", "sha256")
    list_select_related = ("run",)
    actions = ("delete_adapters",)
    readonly_fields = (*all_field_names(Adapter), "path", "run_link", "evaluations")
    fields = readonly_fields

    @admin.display(description="size (MB)", ordering="size_bytes")
    def size_mb(self, adapter: Adapter) -> str:
        return f"{adapter.size_bytes / 2**20:.1f}"

    @admin.display(description="run")
    def run_link(self, adapter: Adapter) -> str:
        return link_to(adapter.run)

    @admin.display(description="evaluations")
    def evaluations(self, adapter: Adapter) -> str:
        url = reverse("admin:evaluation_app_evaluationrun_changelist")
        return format_html('<a href="{}?adapter__id__exact={}">show</a>', url, adapter.pk)

    @admin.action(description="Delete the selected adapters", permissions=["remove"])
    def delete_adapters(self, request: HttpRequest, queryset: QuerySet[Adapter]) -> None:
        act_on_each(request, queryset, remove_adapter)

    def has_remove_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("training_app.delete_adapter")


@admin.register(AdapterMerge)
class AdapterMergeAdmin(ReadOnlyAdmin):
    list_display = ("id", "status", "adapter_name", "base_model_name", "model_name", "adapter_link", "created_at")
    list_filter = ("status", "base_model_name", "created_at")
    search_fields = ("adapter_name", "base_model_name", "model_name", "message", "error")
    list_select_related = ("adapter",)
    actions = ("stop_merges", "delete_merges")
    readonly_fields = (*all_field_names(AdapterMerge), "path", "adapter_link")
    fields = readonly_fields

    @admin.display(description="adapter")
    def adapter_link(self, merge: AdapterMerge) -> str:
        return link_to(merge.adapter)

    @admin.action(description="Stop the selected merges (nothing of them is kept)", permissions=["change"])
    def stop_merges(self, request: HttpRequest, queryset: QuerySet[AdapterMerge]) -> None:
        act_on_each(request, queryset, stop_one_merge)

    @admin.action(description="Delete the selected merges and their models", permissions=["remove"])
    def delete_merges(self, request: HttpRequest, queryset: QuerySet[AdapterMerge]) -> None:
        act_on_each(request, queryset, remove_merge)

    def has_remove_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("training_app.delete_adaptermerge")
