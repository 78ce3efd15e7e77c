"""Which rows the model behind a run was trained on: by number in the same dataset, by content in another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evaluation_app.comparison.loading import UNKNOWN, RunRows
from evaluation_app.comparison.pairing import either_saw
from evaluation_app.comparison.units import RowLinks, read_links
from evaluation_app.models import EvaluationRun
from ftproject.core.errors import ConflictError
from ftproject.engine.splits import decode_ranges
from training_app.models import AdapterMerge, TrainingRun

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]
    Flags = NDArray[np.int8]


@dataclass(frozen=True)
class Provenance:
    """The trainings behind a run's model, the newest first; `complete` is False where one of them is not known."""

    trainings: tuple[TrainingRun, ...] = ()
    complete: bool = True

    @property
    def trained(self) -> bool:
        return bool(self.trainings) or not self.complete


def provenance_of(run: EvaluationRun) -> Provenance:
    """Through the adapter, and through every merge whose model it or the next adapter stands on.

    A merged model is as trained as the adapter that went into it, although it is evaluated as a base model.
    """
    trainings: list[TrainingRun] = []
    adapter, model, passed, complete = run.adapter, run.model_name, set[str](), True
    while True:
        if adapter is not None and adapter.run is not None:
            trainings.append(adapter.run)
        elif adapter is not None:
            complete = False
        merge = _merge_of(model)
        if merge is None or model in passed:
            return Provenance(tuple(trainings), complete)
        passed.add(model)
        complete = complete and merge.adapter is not None
        adapter, model = merge.adapter, merge.base_model_name


def _merge_of(model_name: str) -> AdapterMerge | None:
    merges = AdapterMerge.objects.filter(model_name=model_name, status=AdapterMerge.Status.COMPLETED)
    return merges.select_related("adapter__run").order_by("-id").first()


def marked(run: EvaluationRun, rows: RunRows, provenance: Provenance, links: RowLinks) -> tuple[RunRows, bool]:
    """The rows with `seen` as the run's own model saw them, and whether any of it was told by content alone."""
    import numpy as np

    told = [_seen_in(training, run, rows.index, links) for training in provenance.trainings]
    if not provenance.complete:
        told.append(np.full_like(rows.seen, UNKNOWN))
    seen = np.zeros_like(rows.seen)
    for one in told:
        seen = either_saw(seen, one)
    by_content = any(training.dataset_id != run.dataset_id for training in provenance.trainings)
    return replace(rows, seen=seen), by_content and bool((seen != UNKNOWN).any())


def _seen_in(training: TrainingRun, run: EvaluationRun, index: Labels, links: RowLinks) -> Flags:
    """By number in the same dataset; else rows that show an image (or, without one, ask a prompt) of its rows."""
    import numpy as np

    trained = decode_ranges(training.trained_rows)
    if training.dataset_id == run.dataset_id:
        return np.isin(index, np.array(trained, dtype=np.int64)).astype(np.int8)
    try:
        theirs = read_links(dataset=training.dataset, mapping=training.mapping)
    except ConflictError:  # its table is gone
        return np.full(index.size, UNKNOWN, dtype=np.int8)
    return links.sharing(index, theirs.things_of(trained)).astype(np.int8)
