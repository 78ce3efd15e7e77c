"""Where a person finds the comparison of two runs."""

from collections.abc import Sequence
from urllib.parse import urlencode

from evaluation_app.comparison.rules import comparable_runs
from evaluation_app.models import EvaluationRun
from ftproject.core.errors import InvalidInputError


def comparison_page_of(runs: Sequence[EvaluationRun]) -> str:
    """The path of the page that compares two runs, a run of the base model before the other; else why there is none."""
    if len(runs) != 2:
        raise InvalidInputError(f"Two runs can be compared, not {len(runs)}.", hint="Select two.")
    baseline, candidate = sorted(runs, key=lambda run: (run.adapter_id is not None, run.pk))
    comparable_runs(baseline.pk, [candidate.pk])
    query = {"baseline_run_id": baseline.pk, "candidate_run_id": candidate.pk, "format": "html"}
    return f"/api/evaluation/compare/export?{urlencode(query)}"
