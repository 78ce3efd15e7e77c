"""Reads of a run's samples: filters, the order a person wants, and pages of runs with a million of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db.models import F, FloatField, Func, Q, QuerySet
from django.db.models.expressions import Combinable

from datasets_app.thumbnails import images_of_row, thumbnail_url
from evaluation_app.models import EvaluationRun, Sample
from ftproject.core.errors import InvalidInputError, Problem, ProductError, did_you_mean
from ftproject.core.pagination import Page
from ftproject.engine.metrics import ALWAYS_SCORED, METRICS
from ftproject.engine.thumbnails import DEFAULT_SIZE

DEFAULT_METRIC = "token_f1"
SORTS = ("index", "worst", "best")


@dataclass(frozen=True, kw_only=True)
class SampleQuery:
    """What a client may ask for; the names are those of the query string, None or empty what it left out."""

    correct: bool | None = None
    skipped: bool | None = None
    seen: bool | None = None
    reused: bool | None = None
    label: str | None = None
    q: str = ""
    sort: str = "index"
    metric: str | None = None
    min_score: float | None = None
    max_score: float | None = None


class ScoreInJson(Func):
    """The number of one metric in `scores`; NULL where it is missing or null."""

    output_field = FloatField()

    def __init__(self, name: str) -> None:
        super().__init__(F("scores"), name=name)

    def as_sqlite(self, compiler: Any, connection: Any, **_: Any) -> Any:
        sql, params = compiler.compile(self.source_expressions[0])
        return f"JSON_EXTRACT({sql}, %s)", [*params, f'$."{self.extra["name"]}"']

    def as_postgresql(self, compiler: Any, connection: Any, **_: Any) -> Any:
        sql, params = compiler.compile(self.source_expressions[0])
        return f"({sql} ->> %s)::double precision", [*params, self.extra["name"]]


def metrics_of(run: EvaluationRun) -> dict[str, bool]:
    """The metrics that the samples of a run have, and whether higher is better."""
    named = [entry["name"] for entry in run.metric_options.get("metrics", [])]
    metrics = dict.fromkeys(ALWAYS_SCORED, True) | {name: METRICS[name].higher_is_better for name in named}
    return metrics | ({"confidence": True} if run.metric_options.get("confidence") else {})


def metric_named(run: EvaluationRun, name: str | None) -> str:
    """The name of a metric that this run has; a refusal with the nearest one, or how to get it."""
    known = list(metrics_of(run))
    wanted = name or DEFAULT_METRIC
    if wanted in known:
        return wanted
    detail = f"Evaluation run {run.pk} was not scored by {wanted[:100]!r}."
    hint = f'Evaluate again with "metrics": ["{wanted}"].' if wanted in METRICS else did_you_mean(wanted[:100], known)
    problem = Problem("unknown_metric", f"Known: {', '.join(known)}.", field="metric")
    raise InvalidInputError(detail, code="unknown_metric", hint=hint, errors=[problem])


def score_of(metric: str) -> Combinable:
    return ScoreInJson(metric) if metric in METRICS else F(metric)


def filtered_samples(*, run: EvaluationRun, query: SampleQuery) -> QuerySet[Sample]:
    wanted = {
        "exact_match": query.correct,
        "skipped": query.skipped,
        "seen_in_training": query.seen,
        "reused": query.reused,
    }
    samples = Sample.objects.filter(run=run, **{name: value for name, value in wanted.items() if value is not None})
    if query.label is not None:
        samples = samples.filter(label=query.label) if query.label else samples.filter(label=None, skipped=False)
    if query.q:
        text = query.q
        samples = samples.filter(
            Q(prompt__icontains=text) | Q(ground_truth__icontains=text) | Q(prediction__icontains=text)
        )
    return within_bounds(run, samples, query)


def within_bounds(run: EvaluationRun, samples: QuerySet[Sample], query: SampleQuery) -> QuerySet[Sample]:
    """Samples whose score of the metric is within both bounds; one without a score is not."""
    bounds = {"score__gte": query.min_score, "score__lte": query.max_score}
    given = {lookup: bound for lookup, bound in bounds.items() if bound is not None}
    if not given:
        return samples
    return samples.alias(score=score_of(metric_named(run, query.metric))).filter(**given)


def page_of_samples(*, run: EvaluationRun, query: SampleQuery, page: int, page_size: int) -> tuple[Page, list[Sample]]:
    """One page in the wanted order, equal scores by row; samples without a score come last, whichever end is first."""
    samples = filtered_samples(run=run, query=query)
    if query.sort == "index":
        shown = Page(page, page_size, number_of(run, samples))
        return shown, fetched(run, [samples.order_by("index")], [shown.total], shown)
    metric = metric_named(run, query.metric)
    score = score_of(metric)
    # Two queries: with NULLS LAST neither database reads the order out of an index.
    scored = samples.alias(of=score).filter(of__isnull=False)
    unscored = samples.alias(of=score).filter(of__isnull=True)
    ascending = metrics_of(run)[metric] == (query.sort == "worst")
    parts = [scored.order_by(F("of").asc() if ascending else F("of").desc(), "index"), unscored.order_by("index")]
    counts = [number_of(run, scored), number_of(run, unscored)]
    shown = Page(page, page_size, sum(counts))
    return shown, fetched(run, parts, counts, shown)


def fetched(run: EvaluationRun, parts: Sequence[QuerySet[Sample]], counts: Sequence[int], shown: Page) -> list[Sample]:
    """The page out of several queries one after the other: first row numbers, which an index holds, then the rows."""
    keys: list[int] = []
    start = shown.offset
    for part, count in zip(parts, counts, strict=True):
        missing = shown.page_size - len(keys)
        if missing and start < count:
            keys += part.values_list("index", flat=True)[start : start + missing]
        start = max(0, start - count)
    found = {sample.index: sample for sample in Sample.objects.filter(run=run, index__in=keys)}
    return [found[key] for key in keys if key in found]


@dataclass(frozen=True)
class _Asked:
    """A count by what was asked, and by when the run ended: a restored database may give its number again."""

    completed_at: datetime | None
    sql: str
    params: tuple[Any, ...]
    samples: QuerySet[Sample] = field(compare=False)


def number_of(run: EvaluationRun, samples: QuerySet[Sample]) -> int:
    """How many there are; of a run that is completed this never changes, and is counted once."""
    if run.status != EvaluationRun.Status.COMPLETED:
        return samples.count()
    sql, params = samples.query.sql_with_params()
    return _counted_once(_Asked(run.completed_at, sql, params, samples))


@lru_cache(maxsize=512)
def _counted_once(asked: _Asked) -> int:
    return asked.samples.count()


def thumbnails_of(sample: Sample, run: EvaluationRun, size: int = DEFAULT_SIZE) -> list[str]:
    """The path of a small picture of each image of the row; whether it can be shown, its own route says."""
    count = number_of_images(sample, run)
    place = {"dataset_id": run.dataset_id, "index": sample.index, "version": run.mapping.version, "size": size}
    return [thumbnail_url(number=number, **place) for number in range(count)]


def number_of_images(sample: Sample, run: EvaluationRun) -> int:
    if sample.num_images is not None:
        return sample.num_images
    try:
        return len(images_of_row(dataset=run.dataset, mapping=run.mapping, index=sample.index))
    except ProductError:  # the dataset's file is gone: the samples are still worth seeing
        return 0
