"""The admin's pages of evaluation runs and samples: facts to read, stop and delete as actions."""

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

from evaluation_app.admin_pages import samples_context
from evaluation_app.comparison.links import comparison_page_of
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.services import delete_evaluation, stop_evaluation
from ftproject.core.errors import ProductError
from training_app.admin import ReadOnlyAdmin, act_on_each, all_field_names, link_to


def stop(run: EvaluationRun) -> str:
    return f"Run {run.pk}: {stop_evaluation(run=run).status}."


def remove(run: EvaluationRun) -> str:
    number = run.pk
    delete_evaluation(run=run)
    return f"Run {number} is deleted."


@admin.register(EvaluationRun)
class EvaluationRunAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "status",
        "model_type",
        "model_name",
        "adapter_link",
        "dataset_link",
        "rows",
        "answered",
        "num_skipped",
        "exact_match_accuracy",
        "token_f1",
        "samples_link",
        "created_at",
        "elapsed_seconds",
    )
    list_filter = ("status", "model_type", "eval_mode", "rows", "model_name", "created_at")
    search_fields = ("model_name", "adapter__name", "dataset__filename", "message", "error")
    list_select_related = ("adapter", "dataset")
    date_hierarchy = "created_at"
    actions = ("compare_runs", "stop_runs", "delete_runs")
    readonly_fields = (*all_field_names(EvaluationRun), "dataset_link", "adapter_link", "samples_link")
    fields = readonly_fields

    @admin.display(description="rows done")
    def answered(self, run: EvaluationRun) -> str:
        return f"{run.current} / {'?' if run.total is None else run.total}"

    @admin.display(description="adapter", ordering="adapter__name")
    def adapter_link(self, run: EvaluationRun) -> str:
        return link_to(run.adapter)

    @admin.display(description="dataset", ordering="dataset__filename")
    def dataset_link(self, run: EvaluationRun) -> str:
        return link_to(run.dataset)

    @admin.display(description="samples")
    def samples_link(self, run: EvaluationRun) -> str:
        return format_html('<a href="{}">worst first</a>', reverse("admin:evaluation_app_run_samples", args=[run.pk]))

    def get_urls(self) -> list[URLPattern]:
        page = self.admin_site.admin_view(self.samples_page)
        return [path("<int:run_id>/samples/", page, name="evaluation_app_run_samples"), *super().get_urls()]

    def samples_page(self, request: HttpRequest, run_id: int) -> HttpResponse:
        """One run explained, its samples worst first."""
        run = get_object_or_404(self.get_queryset(request).select_related("mapping", "dataset", "adapter"), pk=run_id)
        if not self.has_view_permission(request, run):
            raise PermissionDenied
        context = {**self.admin_site.each_context(request), "opts": self.model._meta, **samples_context(request, run)}
        return TemplateResponse(request, "admin/evaluation_app/run_samples.html", context)

    @admin.action(description="Compare the two selected runs", permissions=["view"])
    def compare_runs(self, request: HttpRequest, queryset: QuerySet[EvaluationRun]) -> HttpResponse | None:
        """To the page of the comparison; what cannot be compared is said here."""
        try:
            return HttpResponseRedirect(comparison_page_of(list(queryset)))
        except ProductError as error:
            messages.error(request, f"{error.detail} {error.hint}".strip())
            return None

    @admin.action(description="Stop the selected runs (waiting ones are cancelled)", permissions=["change"])
    def stop_runs(self, request: HttpRequest, queryset: QuerySet[EvaluationRun]) -> None:
        act_on_each(request, queryset, stop)

    @admin.action(description="Delete the selected runs with their samples", permissions=["remove"])
    def delete_runs(self, request: HttpRequest, queryset: QuerySet[EvaluationRun]) -> None:
        act_on_each(request, queryset, remove)

    def has_remove_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("evaluation_app.delete_evaluationrun")

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "adapter__id__exact" or super().lookup_allowed(lookup, value, request)


@admin.register(Sample)
class SampleAdmin(ReadOnlyAdmin):
    list_display = (
        "run_link",
        "index",
        "short_ground_truth",
        "short_prediction",
        "exact_match",
        "token_f1",
        "label",
        "seen_in_training",
        "skipped",
        "skipped_reason",
    )
    list_display_links = ("index",)
    list_filter = ("exact_match", "skipped", "seen_in_training", "finish_reason", "run__model_type")
    search_fields = ("prompt", "ground_truth", "prediction")
    list_select_related = ("run",)
    ordering = ("-run_id", "index")
    # Counting a million samples a second time for "n of m" would cost more than the page itself.
    show_full_result_count = False
    readonly_fields = (*all_field_names(Sample), "run_link")
    fields = readonly_fields

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        return lookup == "run__id__exact" or super().lookup_allowed(lookup, value, request)

    @admin.display(description="run", ordering="run_id")
    def run_link(self, sample: Sample) -> str:
        return link_to(sample.run)

    @admin.display(description="ground truth")
    def short_ground_truth(self, sample: Sample) -> str:
        return shortened(sample.ground_truth)

    @admin.display(description="prediction")
    def short_prediction(self, sample: Sample) -> str:
        return shortened(sample.prediction)


def shortened(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"
