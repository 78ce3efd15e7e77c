"""What the run process of a continuation looks at before it trains: its checkpoint is there, its rows are the same."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ftproject.core.errors import ProductError
from ftproject.engine.checkpoints import latest_checkpoint
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.splits import decode_ranges, encode_ranges
from training_app.checkpoints import checkpoints_dir, lineage
from training_app.models import TrainingRun

ROWS_SHOWN = 5
START_ANEW = "Start a new run with its requested_config."


class ContinuationError(ProductError):
    """A run that cannot go on as the same run."""

    default_code = "not_resumable"


def origin_of(run: TrainingRun) -> str | None:
    """Where the run's first steps come from, for its log, its message and its events."""
    if run.resumed_from_id is None:
        return None
    return f"Continues run {run.resumed_from_id} from step {run.resumed_step}"


def checkpoint_to_resume(run: TrainingRun) -> Path | None:
    """The checkpoint that the run was created to go on from; None for a run that begins at the first step."""
    if run.resumed_from is None:
        return None
    for owner in lineage(run.resumed_from):
        folder = latest_checkpoint(checkpoints_dir(owner))
        if folder is not None and folder.name == f"checkpoint-{run.resumed_step}":
            return folder
    detail = f"The checkpoint of run {run.resumed_from_id} at step {run.resumed_step} is gone."
    raise ContinuationError(detail, hint=START_ANEW)


def rows_digest(train: Sequence[ResolvedConversation], heldout: Sequence[ResolvedConversation]) -> str:
    """The rows of both sides as one hash: numbers, texts, and images by their contents, in order."""
    digest = hashlib.sha256()
    for side, rows in (("train", train), ("heldout", heldout)):
        for row in rows:
            texts = (row.conversation.prompt, row.conversation.response)
            images = [path.name for path in row.image_paths]  # the cache names a file by the hash of its bytes
            digest.update(json.dumps([side, row.conversation.index, texts, images]).encode())
    return digest.hexdigest()


def require_same_rows(
    run: TrainingRun, train: Sequence[ResolvedConversation], heldout: Sequence[ResolvedConversation]
) -> None:
    """Refuses to go on with other rows than before: an image may be gone from its address, or be another by now."""
    if run.resumed_from_id is None or run.rows_sha256 in {"", rows_digest(train, heldout)}:
        return
    before = {*decode_ranges(run.trained_rows), *decode_ranges(run.heldout_rows)}
    now = {row.conversation.index for row in (*train, *heldout)}
    missing = sorted(before - now)
    if missing:
        more = ", ..." if len(missing) > ROWS_SHOWN else ""
        change = f"missing now: {encode_ranges(missing[:ROWS_SHOWN])}{more}"
    else:
        change = "other rows can be used now, or the images of some have changed"
    raise ContinuationError(
        f"The rows are not those that run {run.resumed_from_id} was trained on ({change}).",
        code="rows_changed",
        hint=f"Make the images available again, or: {START_ANEW}",
    )
