"""Makes the rows of a run ready before its model loads: conversations built, images fetched once, failures told."""

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from django.conf import settings

from datasets_app.images import ImageRefusedError, resolve_image
from datasets_app.models import ColumnMapping, Dataset
from datasets_app.selectors import iter_rows, row_mapping
from ftproject.engine.conversations import (
    Conversation,
    ResolvedConversation,
    RowMapping,
    build_conversation,
    split_image_cell,
)

Row = dict[str, str]
Outcome = Path | ImageRefusedError
STOP_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class PreparedRow:
    """One dataset row; `resolved` names its images by content ("sha256:..."), `image_paths` are their files."""

    index: int
    row: Row | None
    resolved: ResolvedConversation
    skipped: bool
    skipped_reason: str | None


@dataclass(frozen=True)
class PreparedRows:
    rows: list[PreparedRow]
    warnings: list[str]


def prepare_rows(
    *,
    dataset: Dataset,
    mapping: ColumnMapping,
    limit: int | None,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
    indices: Collection[int] | None = None,
) -> PreparedRows:
    """Rows in dataset order, skipped ones included; `indices` keeps only those row numbers.

    A failed image of a mandatory column skips its row with the reason; of another column, the row goes without it
    and a warning counts it. A stop returns what is ready so far: the caller asks `should_stop` itself. `on_progress`
    gets (rows ready, rows in all).
    """
    rules = row_mapping(mapping)
    total = dataset.num_rows if limit is None else min(limit, dataset.num_rows)
    source = iter_rows(dataset=dataset, limit=limit)
    wanted = None if indices is None else set(indices)
    if wanted is not None:
        total = sum(index < total for index in wanted)
        source = ((index, row) for index, row in source if index in wanted)
    ready: list[PreparedRow] = []
    lost: Counter[str] = Counter()
    with ImageResolver() as resolver:
        for pending in resolver.in_order(source, rules):
            if not _arrived(pending, should_stop):
                break
            ready.append(_prepared(pending, rules, lost))
            on_progress(len(ready), total)
    return PreparedRows(ready, _warnings(lost))


@dataclass(frozen=True)
class PendingRow:
    index: int
    row: Row
    conversation: Conversation
    images: list[tuple[str, "Future[Outcome]"]]


class ImageResolver:
    """Resolves images in IMAGE_CONCURRENCY threads, some rows ahead of the consumer; equal cells once."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(settings.IMAGE_CONCURRENCY, thread_name_prefix="image")
        self.started: dict[bytes, Future[Outcome]] = {}

    def __enter__(self) -> "ImageResolver":
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)

    def in_order(self, source: Iterator[tuple[int, Row]], rules: RowMapping) -> Iterator[PendingRow]:
        ahead: deque[PendingRow] = deque()
        for index, row in source:
            ahead.append(self._start(index, row, rules))
            if len(ahead) > 4 * settings.IMAGE_CONCURRENCY:
                yield ahead.popleft()
        yield from ahead

    def _start(self, index: int, row: Row, rules: RowMapping) -> PendingRow:
        conversation = build_conversation(index, row, rules)
        cells = [] if conversation.skipped else image_cells(row, rules)
        return PendingRow(index, row, conversation, [(column, self._future(cell)) for column, cell in cells])

    def _future(self, cell: str) -> "Future[Outcome]":
        key = sha256(cell.encode("utf-8", "surrogatepass")).digest()
        if key not in self.started:
            self.started[key] = self.threads.submit(_outcome, cell)
        return self.started[key]


def image_cells(row: Row, rules: RowMapping) -> list[tuple[str, str]]:
    """Column and cell of each image, in the order of `build_conversation`."""
    return [
        (column, cell)
        for column in rules.image_url_columns
        for cell in split_image_cell(row[column], rules.image_separator)
    ]


def _outcome(cell: str) -> Outcome:
    try:
        return resolve_image(cell)
    except ImageRefusedError as exc:
        return exc


def _arrived(pending: PendingRow, should_stop: Callable[[], bool]) -> bool:
    """Waits for the row's images; False when a stop came first."""
    futures = [future for _, future in pending.images]
    while not should_stop():
        if not wait(futures, timeout=STOP_POLL_SECONDS).not_done:
            return True
    return False


def _prepared(pending: PendingRow, rules: RowMapping, lost: Counter[str]) -> PreparedRow:
    conversation = pending.conversation
    paths: list[Path] = []
    reason = conversation.skipped_reason
    for column, future in pending.images:
        outcome = future.result()
        if isinstance(outcome, Path):
            paths.append(outcome)
        elif column in rules.mandatory_columns:
            reason = reason or f"image in {column!r}: {outcome.message} ({outcome.code})"[:500]
        else:
            lost[f"{column!r}: {outcome.code}"] += 1
    if not reason and not paths and not conversation.prompt.strip():
        reason = "neither a prompt nor an image"
    names = tuple(f"sha256:{path.name}" for path in paths)
    conversation = dataclasses.replace(conversation, images=names, skipped=reason is not None, skipped_reason=reason)
    resolved = ResolvedConversation(conversation, tuple(paths))
    return PreparedRow(pending.index, pending.row, resolved, reason is not None, reason)


def _warnings(lost: Counter[str]) -> list[str]:
    return [
        f"{count} image{'s' if count > 1 else ''} of column {where} left out; the rows go without"
        for where, count in lost.most_common()
    ]
