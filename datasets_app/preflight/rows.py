"""Judges each row as a training run would: used, or skipped and why, with its exact tokens."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from datasets_app.models import ColumnMapping, Dataset
from datasets_app.preflight.images import KnownImage, NotFetched, Outcome, look_up_images
from datasets_app.preparation import image_cells
from datasets_app.selectors import iter_rows, mapped_columns, row_mapping
from ftproject.engine.backends.base import RowError
from ftproject.engine.conversations import Conversation, RowMapping, build_conversation
from ftproject.engine.token_counts import RowTokens, Size, TokenCounter

# A chunk's images are looked up together; rows with images inside make it full earlier.
CHUNK_ROWS = 256
CHUNK_CHARS = 4 * 1024 * 1024
NO_ANSWER = "the response is empty"
NOTHING_TO_SEE = "neither a prompt nor an image"

Row = dict[str, str]
Cell = tuple[str, str]


@dataclass(frozen=True)
class ImageFailure:
    column: str
    code: str
    message: str


@dataclass(frozen=True)
class JudgedRow:
    """One row; `reason` says why training skips it, `in_split` whether it takes part in the held-out split.

    `tokens` is None where they cannot be known: an image not fetched yet, a model not on this disk, a skipped row.
    """

    conversation: Conversation
    reason: str | None = None
    in_split: bool = True
    failures: list[ImageFailure] = field(default_factory=list)
    not_fetched: int = 0
    tokens: RowTokens | None = None
    sizes: tuple[Size, ...] = ()
    too_long: bool = False

    @property
    def index(self) -> int:
        return self.conversation.index

    @property
    def trainable(self) -> bool:
        return self.reason is None


def judge_rows(
    *, dataset: Dataset, mapping: ColumnMapping, counter: TokenCounter | None, max_seq_length: int
) -> Iterator[JudgedRow]:
    """Every row in dataset order, in bounded memory."""
    judge = RowJudge(row_mapping(mapping), counter, max_seq_length)
    for chunk in row_chunks(iter_rows(dataset=dataset, columns=mapped_columns(mapping))):
        read = [(build_conversation(index, row, judge.rules), row) for index, row in chunk]
        cells = [[] if talk.skipped else image_cells(row, judge.rules) for talk, row in read]
        known = look_up_images(dataset=dataset, cells={cell for row in cells for _, cell in row})
        for (talk, _), own in zip(read, cells, strict=True):
            yield judge.judge(talk, [(column, known[cell]) for column, cell in own])


def row_chunks(rows: Iterator[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    chunk: list[tuple[int, Row]] = []
    chars = 0
    for index, row in rows:
        chunk.append((index, row))
        chars += sum(map(len, row.values()))
        if len(chunk) >= CHUNK_ROWS or chars >= CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


class RowJudge:
    """The rules of `preparation.prepare_rows` and `engine.training.usable_rows`, in their order (tests compare)."""

    def __init__(self, rules: RowMapping, counter: TokenCounter | None, max_seq_length: int) -> None:
        self.rules = rules
        self.counter = counter
        self.max_seq_length = max_seq_length

    def judge(self, conversation: Conversation, images: list[tuple[str, Outcome]]) -> JudgedRow:
        if conversation.skipped:
            return JudgedRow(conversation, conversation.skipped_reason, in_split=False)
        failures = [
            ImageFailure(column, outcome.code, outcome.message)
            for column, outcome in images
            if not isinstance(outcome, KnownImage | NotFetched)
        ]
        kept = [outcome for _, outcome in images if isinstance(outcome, KnownImage | NotFetched)]
        row = JudgedRow(
            dataclasses.replace(conversation, images=tuple(image.name for image in kept)),
            failures=failures,
            not_fetched=sum(isinstance(image, NotFetched) for image in kept),
            sizes=tuple(image.size for image in kept if isinstance(image, KnownImage)),
        )
        reason = self._reason_of_images(row)
        if reason:
            return dataclasses.replace(row, reason=reason, in_split=False)
        return self._measured(row)

    def _reason_of_images(self, row: JudgedRow) -> str | None:
        for failure in row.failures:
            if failure.column in self.rules.mandatory_columns:
                return f"image in {failure.column!r}: {failure.code}"
        if not row.conversation.prompt.strip() and not row.sizes and not row.not_fetched:
            return NOTHING_TO_SEE
        return None

    def _measured(self, row: JudgedRow) -> JudgedRow:
        if not row.conversation.response.strip():
            return dataclasses.replace(row, reason=NO_ANSWER)
        if self.counter is None or row.not_fetched:
            return row
        try:
            tokens = self.counter.count_sized(row.conversation, row.sizes)
        except RowError as exc:
            return dataclasses.replace(row, reason=f"{exc.code}: {_words(exc)}")
        too_long = tokens.total > self.max_seq_length
        reason = f"more than max_seq_length {self.max_seq_length} tokens" if too_long else None
        return dataclasses.replace(row, reason=reason, tokens=tokens, too_long=too_long)


def _words(error: RowError) -> str:
    """The message up to its figures, so that equal reasons are counted together."""
    return error.message.split(",")[0] if error.code != "image_aspect_ratio" else "the picture is too long and thin"
