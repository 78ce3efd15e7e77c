"""The rows of a comparison as people read them: both answers beside the question, the truth and the transition."""

from collections.abc import Iterator, Sequence
from typing import Any

from evaluation_app.comparison.judged import PairedRuns
from evaluation_app.comparison.loading import UNKNOWN
from evaluation_app.comparison.pairing import Pairs
from evaluation_app.models import EvaluationRun, Sample
from ftproject.core.pagination import Page

# SQLite's oldest limit of variables in a statement is 999.
BATCH = 500


def page_of_pairs(
    paired: PairedRuns, *, transition: str | None, page: int, page_size: int
) -> tuple[Page, list[dict[str, Any]]]:
    """One page of the judged rows by index, of one transition or of all."""
    pairs = paired.judged if transition is None else paired.judged.take(paired.judged.where(transition))
    where = Page(page, page_size, len(pairs))
    return where, list(read_pairs(paired, pairs, range(where.offset, min(where.offset + page_size, len(pairs)))))


def read_pairs(paired: PairedRuns, pairs: Pairs, places: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows at these places of `pairs`, in the order given, with their samples."""
    import numpy as np

    transitions = pairs.take(np.array(places, dtype=np.int64)).transitions()
    for start in range(0, len(places), BATCH):
        chosen = places[start : start + BATCH]
        indices = [int(pairs.index[place]) for place in chosen]
        old, new = (samples_at(run, indices) for run in (paired.baseline, paired.candidate))
        for place, index, transition in zip(chosen, indices, transitions[start : start + BATCH], strict=True):
            seen = int(pairs.seen[place])
            yield {
                "index": index,
                "transition": transition,
                "seen_in_training": None if seen == UNKNOWN else bool(seen),
                "prompt": new[index].prompt,
                "ground_truth": new[index].ground_truth,
                "baseline": old[index],
                "candidate": new[index],
            }


def samples_at(run: EvaluationRun, indices: Sequence[int]) -> dict[int, Sample]:
    return {sample.index: sample for sample in Sample.objects.filter(run=run, index__in=indices)}
