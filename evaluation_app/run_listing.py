"""The list of runs as a client may narrow it, and where else to look from one run."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.db.models import QuerySet

from evaluation_app.models import EvaluationRun
from evaluation_app.selectors import list_runs
from ftproject.core.pagination import Page
from training_app.selectors import find_adapter_row

RUNS = "/api/evaluation/runs"
EXPORTS = ("csv", "json", "jsonl")


@dataclass(frozen=True, kw_only=True)
class RunQuery:
    """What a client may ask for; without `page` and `page_size` the list is whole, as the first edition gave it."""

    status: str = "completed"
    dataset_id: int | None = None
    adapter: str | None = None
    model_type: str | None = None
    page: int | None = None
    page_size: int | None = None

    @property
    def is_paged(self) -> bool:
        return self.page is not None or self.page_size is not None


def filtered_runs(query: RunQuery) -> QuerySet[EvaluationRun]:
    runs = list_runs(include_unfinished=query.status == "all")
    if query.dataset_id is not None:
        runs = runs.filter(dataset_id=query.dataset_id)
    if query.adapter is not None:
        runs = runs.filter(adapter=find_adapter_row(reference=query.adapter))
    return runs if query.model_type is None else runs.filter(model_type=query.model_type)


def page_of_runs(query: RunQuery, default_size: int) -> tuple[Page, list[EvaluationRun]]:
    runs = filtered_runs(query)
    if not query.is_paged:
        found = list(runs)
        return Page(1, max(len(found), 1), len(found)), found
    shown = Page(query.page or 1, query.page_size or default_size, runs.count())
    return shown, list(runs[shown.offset : shown.offset + shown.page_size])


def rows_per_second(run: EvaluationRun) -> float | None:
    """Rows from the start of the run to its end or now; loading and preparing are part of it."""
    seconds = run.elapsed_seconds
    return round(run.current / seconds, 3) if seconds and run.current else None


def baseline_of(run: EvaluationRun) -> int | None:
    """The newest finished run of the base model over the same table, before which this one would be judged."""
    bases = EvaluationRun.objects.filter(
        dataset=run.dataset_id, model_type=EvaluationRun.ModelType.BASE, status=EvaluationRun.Status.COMPLETED
    )
    return bases.exclude(pk=run.pk).order_by("-id").values_list("pk", flat=True).first()


def links_of(run: EvaluationRun) -> dict[str, Any]:
    """Paths of what belongs to a run; null where there is nothing yet."""
    finished = run.status == EvaluationRun.Status.COMPLETED
    base = baseline_of(run) if finished and run.adapter_id is not None else None
    pair = urlencode({"baseline_run_id": base, "candidate_run_id": run.pk, "format": "html"})
    return {
        "self": f"{RUNS}/{run.pk}",
        "samples": f"{RUNS}/{run.pk}/samples",
        "worst": f"{RUNS}/{run.pk}/samples?sort=worst",
        **{
            f"export_{kind}": f"/api/evaluation/export/{run.pk}?format={kind}" if finished else None for kind in EXPORTS
        },
        "compare_with_base": f"/api/evaluation/compare/export?{pair}" if base else None,
        "dataset": f"/api/datasets/{run.dataset_id}",
        "adapter": f"/api/training/adapters/{run.adapter.name}" if run.adapter else None,
        "page": f"/admin/evaluation_app/evaluationrun/{run.pk}/samples/",
    }
