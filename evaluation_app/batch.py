"""Several evaluations as one piece of work: queued together, or taken up again where an earlier attempt ended."""

from collections.abc import Sequence
from contextlib import suppress

from django.db import transaction

from evaluation_app.models import EvaluationRun
from evaluation_app.plans import EvaluationRequest, plan_run
from evaluation_app.resume import judge_resume, resume_evaluation
from evaluation_app.services import queue_run
from ftproject.core.errors import ConflictError

# Two runs that agree in these answer the same rows in the same way and are scored alike.
PLAN_FIELDS = (
    "dataset_id",
    "mapping_id",
    "adapter_id",
    "split_adapter_id",
    "model_name",
    "backend",
    "device",
    "model_settings",
    "eval_mode",
    "positive_label",
    "metric_options",
    "sample_limit",
    "rows",
    "generation_params",
)


def start_batch(*, requests: Sequence[EvaluationRequest], resume: bool = False) -> list[EvaluationRun]:
    """A run per request, queued all or none; with `resume`, the newest earlier run of the same plan where there is one.

    A completed one is taken as it is, one that waits or runs is waited for, one that was interrupted goes on with its
    missing rows.
    """
    planned = [plan_run(request) for request in requests]
    earlier = [find_earlier(plan) if resume else None for plan in planned]
    with transaction.atomic():
        return [taken_up(run) or queue_run(plan)[0] for plan, run in zip(planned, earlier, strict=True)]


def taken_up(run: EvaluationRun | None) -> EvaluationRun | None:
    if run is not None and run.status == EvaluationRun.Status.ERROR:
        with suppress(ConflictError):  # another process was first: its run is waited for
            run, _ = resume_evaluation(run=run)
    return run


def find_earlier(plan: EvaluationRun) -> EvaluationRun | None:
    """The newest run of the same plan that is of use."""
    alike = EvaluationRun.objects.filter(
        dataset=plan.dataset, mapping=plan.mapping, adapter=plan.adapter, rows=plan.rows, model_name=plan.model_name
    )
    usable = (run for run in alike.order_by("-id") if is_same_plan(run, plan) and is_usable(run))
    return next(usable, None)


def is_same_plan(run: EvaluationRun, plan: EvaluationRun) -> bool:
    return all(getattr(run, name) == getattr(plan, name) for name in PLAN_FIELDS)


def is_usable(run: EvaluationRun) -> bool:
    return run.status != EvaluationRun.Status.ERROR or judge_resume(run).can_resume
