"""Two runs side by side, and which of their rows are judged: those that training did not see, where that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation_app.comparison.loading import ACCURACY, UNKNOWN, RunRows, read_rows_of
from evaluation_app.comparison.pairing import ALL, SEEN, UNSEEN, LeftOut, Pairs, pair_rows
from evaluation_app.comparison.provenance import Provenance, marked, provenance_of
from evaluation_app.comparison.rules import comparable_runs, unlike_metrics
from evaluation_app.comparison.units import RowLinks, read_links
from evaluation_app.models import EvaluationRun
from ftproject.core.errors import InvalidInputError, did_you_mean

NO_SUCH_ROWS = {SEEN: "no_seen_rows", UNSEEN: "no_unseen_rows"}


@dataclass(frozen=True)
class PairedRuns:
    """`pairs` are all rows that both evaluated, `judged` those of them that the comparison is about."""

    baseline: EvaluationRun
    candidate: EvaluationRun
    pairs: Pairs
    left_out: LeftOut
    rows: str
    judged: Pairs
    metric: str
    num_reused: tuple[int, int]
    provenances: tuple[Provenance, Provenance]
    recognised: bool
    links: RowLinks

    @property
    def trained(self) -> bool:
        return any(provenance.trained for provenance in self.provenances)


def pair_runs(
    baseline_run_id: int, candidate_run_ids: Sequence[int], *, metric: str | None = None, rows: str | None = None
) -> list[PairedRuns]:
    """Each candidate beside the baseline; raises a ProductError when a pair, a metric or a choice of rows cannot be."""
    baseline, candidates = comparable_runs(baseline_run_id, candidate_run_ids)
    links = read_links(dataset=baseline.dataset, mapping=baseline.mapping)
    old = _side(baseline, links)
    return [_paired(old, _side(candidate, links), links, metric, rows) for candidate in candidates]


@dataclass(frozen=True)
class Side:
    run: EvaluationRun
    rows: RunRows
    provenance: Provenance
    recognised: bool


def _side(run: EvaluationRun, links: RowLinks) -> Side:
    provenance = provenance_of(run)
    rows, recognised = marked(run, read_rows_of(run), provenance, links)
    return Side(run, rows, provenance, recognised)


def _paired(baseline: Side, candidate: Side, links: RowLinks, metric: str | None, rows: str | None) -> PairedRuns:
    old, new = baseline.rows, candidate.rows
    provenances = (baseline.provenance, candidate.provenance)
    pairs, left_out = pair_rows(old, new)
    pairs = pairs.without_figures(unlike_metrics(baseline.run, candidate.run))
    chosen = _chosen_rows(pairs, rows, any(one.trained for one in provenances))
    return PairedRuns(
        baseline=baseline.run,
        candidate=candidate.run,
        pairs=pairs,
        left_out=left_out,
        rows=chosen,
        judged=pairs.part(chosen),
        metric=_chosen_metric(pairs, metric),
        num_reused=(old.num_reused, new.num_reused),
        provenances=provenances,
        recognised=baseline.recognised or candidate.recognised,
        links=links,
    )


def _chosen_metric(pairs: Pairs, metric: str | None) -> str:
    if metric is None:
        return ACCURACY if ACCURACY in pairs.figures else "exact_match"
    if metric not in pairs.figures:
        raise InvalidInputError(
            f"Both runs have no score {metric!r} for each row.",
            code="unknown_metric",
            hint=f"{did_you_mean(metric, sorted(pairs.figures))} Runs have those that were named when they started.",
        )
    return metric


def _chosen_rows(pairs: Pairs, rows: str | None, trained: bool) -> str:
    """Unseen rows unless the caller wants others, or nothing was trained, or nobody knows what training saw."""
    known = {SEEN: bool((pairs.seen == 1).any()), UNSEEN: bool((pairs.seen == 0).any()) and trained}
    if rows is None:
        return UNSEEN if known[UNSEEN] else ALL
    if rows != ALL and not known[rows]:
        unknown = bool((pairs.seen == UNKNOWN).any())
        raise InvalidInputError(
            f"No row that both runs evaluated is known to be {rows}.",
            code="no_split" if unknown or not trained else NO_SUCH_ROWS[rows],
            hint="Leave rows out, or evaluate both models with rows=heldout of the adapter's split.",
        )
    return rows
