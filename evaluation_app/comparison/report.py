"""Makes the comparison out of paired rows: tests, estimates, says in a sentence what they mean and what to doubt."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation_app.comparison.doubts import doubts_about
from evaluation_app.comparison.figures import class_figures, higher_is_better, paired_figures
from evaluation_app.comparison.judged import PairedRuns, pair_runs
from evaluation_app.comparison.pairing import ALL, SEEN, UNSEEN, Pairs
from evaluation_app.comparison.verdict import Evidence, Names, sentence, weigh
from evaluation_app.models import EvaluationRun
from ftproject.engine.statistics.bootstrap import Interval, bootstrap_differences
from ftproject.engine.statistics.paired_tests import TEST_LEVEL, holm_adjusted, mcnemar_p_value

Report = dict[str, Any]
# A comparison of half a million rows takes 340 MB and ten seconds (measured).
TURNS = threading.BoundedSemaphore(2)


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What a caller may choose; the same choice always gives the same answer."""

    metric: str | None = None
    rows: str | None = None
    confidence_level: float = 0.95
    num_resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Comparison:
    """One candidate against the baseline: the rows, the evidence and the intervals."""

    paired: PairedRuns
    evidence: Evidence
    differences: dict[str, Interval | None]
    options: CompareOptions

    @property
    def interval(self) -> Interval | None:
        return self.differences.get(self.evidence.metric)

    @property
    def sentence(self) -> str:
        names = Names(model_of(self.paired.baseline), model_of(self.paired.candidate))
        level = self.options.confidence_level
        return sentence(self.evidence, self.paired.judged, self.interval, names=names, level=level)


def compare_runs(baseline_run_id: int, candidate_run_ids: Sequence[int], options: CompareOptions) -> list[Comparison]:
    """Every candidate against one baseline; with several, p values are adjusted by Holm's method."""
    with TURNS:
        paired = pair_runs(baseline_run_id, candidate_run_ids, metric=options.metric, rows=options.rows)
        found = [compare_pair(one, options) for one in paired]
    if len(found) == 1:
        return found
    adjusted = holm_adjusted([one.evidence.p_value for one in found])
    return [
        Comparison(one.paired, one.evidence.adjusted(p), one.differences, options)
        for one, p in zip(found, adjusted, strict=True)
    ]


def compare_pair(paired: PairedRuns, options: CompareOptions) -> Comparison:
    judged, metric = paired.judged, paired.metric
    units = paired.links.units_of(judged.index)
    evidence = weigh(
        judged,
        units,
        metric=metric,
        higher_is_better=higher_is_better(metric),
        rows=paired.rows,
        seed=options.seed,
    )
    differences = bootstrap_differences(
        {**paired_figures(judged), **class_figures(judged, paired.baseline, paired.candidate)},
        units,
        level=options.confidence_level,
        resamples=options.num_resamples,
        seed=options.seed,
    )
    return Comparison(paired, evidence, differences, options)


def report_of(comparison: Comparison) -> Report:
    """The comparison as the route answers it, without its rows."""
    paired, evidence = comparison.paired, comparison.evidence
    counts = paired.judged.counts()
    return {
        "baseline": run_facts(paired.baseline),
        "candidate": run_facts(paired.candidate),
        "dataset_id": paired.baseline.dataset_id,
        "verdict": evidence.verdict,
        "sentence": comparison.sentence,
        "rows": paired.rows,
        "num_rows": evidence.num_rows,
        "num_units": evidence.num_units,
        "transitions": counts,
        "metric": evidence.metric,
        "difference": evidence.difference,
        "higher_is_better": evidence.higher_is_better,
        "test": evidence.test,
        "p_value": evidence.p_value,
        "p_value_adjusted": evidence.p_value_adjusted,
        "mcnemar_p_value": mcnemar_p_value(counts["fixed"], counts["broken"]),
        "test_level": TEST_LEVEL,
        "rows_to_settle": evidence.rows_missing,
        "detectable_difference": evidence.detectable_difference,
        "differences": {name: difference_facts(name, one) for name, one in comparison.differences.items()},
        "confidence_level": comparison.options.confidence_level,
        "num_resamples": comparison.options.num_resamples,
        "seed": comparison.options.seed,
        "parts": {name: part_facts(paired.pairs, name) for name in (ALL, SEEN, UNSEEN)},
        "not_compared": asdict(paired.left_out),
        "warnings": doubts_about(paired, evidence),
    }


def run_facts(run: EvaluationRun) -> dict[str, Any]:
    return {
        "run_id": run.pk,
        "model_type": run.model_type,
        "model_name": run.model_name,
        "adapter": run.adapter.name if run.adapter else None,
        "eval_mode": run.eval_mode,
        "rows": run.rows,
        "num_samples": run.num_samples,
        "num_skipped": run.num_skipped,
        "num_reused": run.num_reused,
        "created_at": run.created_at,
    }


def model_of(run: EvaluationRun) -> str:
    """How a sentence names the run's model; most adapters are called adapter_something."""
    if run.adapter is None:
        return f"base {run.model_name}"
    return run.adapter.name if run.adapter.name.startswith("adapter") else f"adapter {run.adapter.name}"


def difference_facts(name: str, interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else {**asdict(interval), "higher_is_better": higher_is_better(name)}


def part_facts(pairs: Pairs, name: str) -> dict[str, int] | None:
    """The transitions of a part of the rows; null when no row is known to belong to it."""
    part = pairs.part(name)
    return part.counts() if len(part) or name == ALL else None
