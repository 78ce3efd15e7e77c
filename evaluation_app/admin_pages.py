"""The admin's page of one run: what it was, its figures, and its samples worst first with their pictures."""

from typing import Any

from django.contrib import messages
from django.http import HttpRequest, QueryDict

from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.run_listing import links_of, rows_per_second
from evaluation_app.sample_serializers import SampleQuerySerializer
from evaluation_app.samples import DEFAULT_METRIC, SampleQuery, metrics_of, page_of_samples, thumbnails_of
from ftproject.core.errors import ProductError
from ftproject.core.pagination import Page
from ftproject.core.problem import flatten_errors

LARGE = 1024
SORTS = [("worst", "worst first"), ("best", "best first"), ("index", "by row")]
PARTS = {"all": "all rows", "seen": "seen", "unseen": "unseen"}
FIGURES = ("num_samples", "num_skipped", "exact_match_accuracy", "token_precision", "token_recall", "token_f1")
LINKS = {
    "export_csv": "CSV",
    "export_json": "JSON",
    "export_jsonl": "JSON Lines",
    "compare_with_base": "compared with the base model",
    "self": "everything about the run",
}


def samples_context(request: HttpRequest, run: EvaluationRun) -> dict[str, Any]:
    """What the template of the page shows."""
    asked = read_query(request)
    query, (page, samples) = shown_samples(request, run, asked)
    links = links_of(run)
    return {
        "title": f"Evaluation run {run.pk}",
        "run": run,
        "speed": rows_per_second(run),
        "parts": list(PARTS.values()),
        "figures": figure_lines(run),
        "links": [(title, links[name]) for name, title in LINKS.items() if links[name]],
        "sorts": SORTS,
        "metrics": list(metrics_of(run)),
        "metric": query.metric or DEFAULT_METRIC,
        "choices": yes_or_no(query),
        "query": query,
        "page": page,
        "before": neighbour(request, page, -1),
        "after": neighbour(request, page, +1),
        "samples": [described(sample, run) for sample in samples],
    }


def read_query(request: HttpRequest) -> dict[str, Any]:
    """The checked query of the form; what is wrong with it is said, and the page shows the default."""
    given = QueryDict(mutable=True)
    given.update({"sort": "worst", **{name: str(value) for name, value in request.GET.items() if value}})
    if given["sort"] == "index":
        given.pop("metric", None)  # the form names one always
    checked = SampleQuerySerializer(data=given)
    if not checked.is_valid():
        for problem in flatten_errors(checked.errors):
            messages.error(request, f"{problem.field}: {problem.message}")
        checked = SampleQuerySerializer(data={"sort": "worst"})
        checked.is_valid(raise_exception=True)
    values: dict[str, Any] = checked.validated_data
    return values


def shown_samples(
    request: HttpRequest, run: EvaluationRun, asked: dict[str, Any]
) -> tuple[SampleQuery, tuple[Page, list[Sample]]]:
    place = {"page": asked.pop("page"), "page_size": asked.pop("page_size")}
    query = SampleQuery(**asked)
    try:
        return query, page_of_samples(run=run, query=query, **place)
    except ProductError as error:
        messages.error(request, f"{error.detail} {error.hint}")
        query = SampleQuery(sort="worst")
        return query, page_of_samples(run=run, query=query, **place)


def yes_or_no(query: SampleQuery) -> list[tuple[str, str, bool | None]]:
    return [
        ("correct", "Right", query.correct),
        ("seen", "Seen in training", query.seen),
        ("skipped", "Skipped", query.skipped),
    ]


def neighbour(request: HttpRequest, page: Page, step: int) -> str | None:
    """The query string of the page before or after, None where there is none."""
    number = page.page + step
    if not 1 <= number <= page.total_pages:
        return None
    query = request.GET.copy()
    query["page"] = str(number)
    return query.urlencode()


def figure_lines(run: EvaluationRun) -> list[dict[str, Any]]:
    """A line per figure, a value per part of the rows."""
    parts = [run.metrics.get(part) or {} for part in PARTS]
    if not parts[0]:
        return []
    named = [name for name in metrics_of(run) if name in parts[0] and name not in FIGURES]
    return [{"name": name, "values": [number(part.get(name)) for part in parts]} for name in (*FIGURES, *named)]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def described(sample: Sample, run: EvaluationRun) -> dict[str, Any]:
    """A sample as the page shows it."""
    shown = {name: getattr(sample, name) for name in ("token_f1", "token_precision", "token_recall", "confidence")}
    scores = {**shown, **sample.scores}
    pairs = zip(thumbnails_of(sample, run), thumbnails_of(sample, run, LARGE), strict=True)
    facts = ("index", "seen_in_training", "reused", "prompt", "ground_truth", "skipped", "skipped_reason")
    return {
        **{name: getattr(sample, name) for name in (*facts, "prediction", "exact_match")},
        "thumbnails": [{"small": small, "large": large} for small, large in pairs],
        "scores": [(name, number(value)) for name, value in scores.items() if value is not None],
    }
