"""Sorts a run's rows into those that can be trained on, encoded once, and those that cannot, each with its reason."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftproject.engine.backends.base import RowError, SkippedRow, TrainingError
from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.encoding import EncodedRow, RowEncoder
from ftproject.engine.splits import encode_ranges

SKIPPED_ROWS_LISTED = 1000
SKIPPED_ROWS_SAID = 20
ROWS_BETWEEN_LOOKS = 64


@dataclass(frozen=True)
class UsableRows:
    """Rows that fit, in both forms and the same order, and those that do not."""

    rows: list[ResolvedConversation] = field(default_factory=list)
    encoded: list[EncodedRow] = field(default_factory=list)
    skipped: list[SkippedRow] = field(default_factory=list)

    @property
    def numbers(self) -> str:
        """The dataset rows that are really used, as ranges."""
        return encode_ranges(row.index for row in self.encoded)


def usable_rows(
    rows: Sequence[ResolvedConversation],
    processor: Any,
    max_seq_length: int,
    *,
    on_rows: Callable[[int], None] = lambda done: None,
) -> UsableRows:
    """Encodes rows and sets apart those without an answer, with an unusable image, or longer than the limit.

    Nothing is ever cut: a cut row loses image tokens (an error) or its whole answer (a loss of NaN). `on_rows` hears
    every so often how many are done, and may raise.
    """
    encoder, usable = RowEncoder(processor), UsableRows()
    for done, row in enumerate(rows):
        if done % ROWS_BETWEEN_LOOKS == 0:
            on_rows(done)
        encoded = _encode(encoder, row, max_seq_length)
        if isinstance(encoded, SkippedRow):
            usable.skipped.append(encoded)
        else:
            usable.rows.append(row)
            usable.encoded.append(encoded)
    return usable


def _encode(encoder: RowEncoder, row: ResolvedConversation, max_seq_length: int) -> EncodedRow | SkippedRow:
    index = row.conversation.index
    if not row.conversation.response.strip():
        return SkippedRow(index, "the response is empty")
    try:
        encoded = encoder.encode(row, with_response=True)
    except RowError as error:
        return SkippedRow(index, error.message)
    tokens = len(encoded)
    if tokens > max_seq_length:
        return SkippedRow(index, f"{tokens} tokens, more than max_seq_length {max_seq_length}", tokens)
    return encoded


def require_rows(usable: UsableRows) -> None:
    """Raises TrainingError no_trainable_rows where nothing is left."""
    if not usable.encoded:
        reasons = "; ".join(f"row {row.index}: {row.reason}" for row in usable.skipped[:3])
        raise TrainingError("no_trainable_rows", f"no row can be trained on ({reasons or 'the dataset is empty'})")


def skipped_words(skipped: Sequence[SkippedRow]) -> str:
    """The skipped rows as one sentence: each by number and reason, and how many are not named."""
    shown = "; ".join(f"row {row.index}: {row.reason}" for row in skipped[:SKIPPED_ROWS_SAID])
    rest = len(skipped) - SKIPPED_ROWS_SAID
    more = f"; and {rest} more, all of them in the adapter's provenance.json" if rest > 0 else ""
    return f"{len(skipped)} row{'s' if len(skipped) > 1 else ''} skipped ({shown}{more})"


def skipped_facts(skipped: Sequence[SkippedRow]) -> dict[str, Any]:
    """The skipped rows for provenance: all numbers, the first thousand reasons, and how many are left out."""
    listed = [{"index": row.index, "reason": row.reason, "tokens": row.tokens} for row in skipped[:SKIPPED_ROWS_LISTED]]
    return {
        "skipped_row_numbers": encode_ranges(row.index for row in skipped),
        "skipped_rows": listed,
        "skipped_rows_not_listed": len(skipped) - len(listed),
    }


def rows_facts(trained: UsableRows, heldout: UsableRows) -> dict[str, Any]:
    """Number and hash of the rows of both sides, for a checkpoint to know them again."""
    return {
        "trained_count": len(trained.encoded),
        "trained_sha256": rows_digest(trained.encoded),
        "heldout_count": len(heldout.encoded),
        "heldout_sha256": rows_digest(heldout.encoded),
    }


def rows_digest(rows: Sequence[EncodedRow]) -> str:
    """A hash over what the model sees of rows, in order: numbers, tokens, loss mask, and the images' names and sizes.

    The image cache names a file by its content; the size is for folders that do not.
    """
    digest = hashlib.sha256()
    for row in rows:
        images = [(path.name, path.stat().st_size) for path in row.image_paths]
        digest.update(f"{row.index} {len(row)} {images}".encode())
        digest.update(array("q", row.input_ids).tobytes())
        digest.update(array("q", row.labels).tobytes())
    return digest.hexdigest()
