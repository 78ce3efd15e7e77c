"""Makes the rows of a run ready before its model loads: conversations built, images fetched once, failures told."""

import dataclasses
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Container, Generator, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from django.conf import settings

from datasets_app.archive_paths import Found, archived_image, batches, find_archived
from datasets_app.images import ImageRefusedError, is_path, resolve_image
from datasets_app.models import ColumnMapping, Dataset
from datasets_app.selectors import iter_rows, mapped_columns, read_rows, row_mapping
from ftproject.core.image_hosts import HostLanes, HostRecord
from ftproject.engine.conversations import (
    Conversation,
    ResolvedConversation,
    RowMapping,
    build_conversation,
    split_image_cell,
)
from ftproject.engine.images import is_data_uri

Row = dict[str, str]
Outcome = Path | ImageRefusedError
STOP_POLL_SECONDS = 0.5
# A finished future is about 1 kB.
KEPT_OUTCOMES = 8192
# Rows may hold whole images as data URIs: so many characters wait at most, whatever the rows are.
WAITING_CHARS = 16_000_000


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
    with ImageResolver(dataset) as resolver:
        for pending in resolver.in_order(source, rules):
            if not arrived(pending, should_stop):
                break
            ready.append(_prepared(pending, rules, lost))
            on_progress(len(ready), total)
    return PreparedRows(ready, image_warnings(lost))


def iter_prepared(
    *,
    dataset: Dataset,
    mapping: ColumnMapping,
    limit: int | None,
    should_stop: Callable[[], bool],
    indices: Container[int],
    lost: Counter[str],
    ahead: int,
) -> Generator[PreparedRow, None, None]:
    """The rows of `prepare_rows` one by one, without their cells, in bounded memory; a stop ends the iteration.

    The images of `ahead` further rows are being fetched meanwhile. What is left out is counted in `lost`
    (`image_warnings`). Close the iterator: fetches may be under way.
    """
    rules = row_mapping(mapping)
    rows = iter_rows(dataset=dataset, limit=limit, columns=mapped_columns(mapping))
    source = ((index, row) for index, row in rows if index in indices)
    with ImageResolver(dataset) as resolver:
        for pending in resolver.in_order(source, rules, ahead=ahead):
            if not arrived(pending, should_stop):
                return
            yield dataclasses.replace(_prepared(pending, rules, lost), row=None)


def prepare_row(*, dataset: Dataset, mapping: ColumnMapping, index: int) -> tuple[PreparedRow, list[str]]:
    """One row that is there, as `prepare_rows` makes it, and its warnings; the rows before it are not read."""
    rules, lost = row_mapping(mapping), Counter[str]()
    row = read_rows(dataset=dataset, start=index, count=1)[0]
    with ImageResolver(dataset) as resolver:
        pending = next(resolver.in_order(iter([(index, row)]), rules))
        arrived(pending, lambda: False)
        return _prepared(pending, rules, lost), image_warnings(lost)


@dataclass(frozen=True)
class PendingImage:
    column: str
    cell: str
    outcome: "Future[Outcome]"


@dataclass(frozen=True)
class PendingRow:
    index: int
    row: Row
    conversation: Conversation
    images: list[PendingImage]


class ImageResolver:
    """Resolves images in IMAGE_CONCURRENCY threads, some rows ahead of the consumer; equal cells once.

    The database is asked by the consumer's thread only, for the archive paths of many rows at once. Memory stays
    bounded: a cell that was not seen for KEPT_OUTCOMES others is looked up in the cache on disk again.
    """

    def __init__(self, dataset: Dataset | None = None, *, retry_failed: bool = False) -> None:
        self.dataset = dataset
        self.resolve = partial(_outcome, hosts=HostRecord(), retry_failed=retry_failed)
        self.lanes = HostLanes(settings.IMAGE_CONCURRENCY, settings.IMAGE_HOST_CONCURRENCY)
        self.started: OrderedDict[bytes, Future[Outcome]] = OrderedDict()

    def __enter__(self) -> "ImageResolver":
        return self

    def __exit__(self, *_: object) -> None:
        self.lanes.close()

    def in_order(self, source: Iterator[tuple[int, Row]], rules: RowMapping, *, ahead: int = 0) -> Iterator[PendingRow]:
        """The rows with their images under way, `ahead` of them or WAITING_CHARS before the consumer."""
        waiting: deque[PendingRow] = deque()
        chars = 0
        step = 4 * settings.IMAGE_CONCURRENCY
        for rows in batches(source, step):
            waiting.extend(self._start(rows, rules))
            chars += sum(chars_of(row) for _, row in rows)
            while len(waiting) > max(step, ahead) or (len(waiting) > step and chars > WAITING_CHARS):
                pending = waiting.popleft()
                chars -= chars_of(pending.row)
                yield pending
        while waiting:
            yield waiting.popleft()

    def _start(self, rows: list[tuple[int, Row]], rules: RowMapping) -> list[PendingRow]:
        built = [build_conversation(index, row, rules) for index, row in rows]
        cells = [
            [] if conversation.skipped else image_cells(row, rules)
            for conversation, (_, row) in zip(built, rows, strict=True)
        ]
        while len(self.started) > KEPT_OUTCOMES:
            self.started.popitem(last=False)
        self._look_up({cell for found in cells for _, cell in found if is_path(cell)})
        return [
            PendingRow(index, row, conversation, [PendingImage(*image, self._future(image[1])) for image in found])
            for conversation, (index, row), found in zip(built, rows, cells, strict=True)
        ]

    def _look_up(self, paths: set[str]) -> None:
        unknown = [cell for cell in paths if _key(cell) not in self.started]
        if self.dataset is None or not unknown:
            return
        for cell, found in find_archived(dataset=self.dataset, cells=unknown).items():
            self._keep(cell, self.lanes.submit("", partial(_archived_outcome, cell, found)))

    def _future(self, cell: str) -> "Future[Outcome]":
        known = self.started.get(_key(cell))
        if known is not None:
            self.started.move_to_end(_key(cell))
            return known
        return self._keep(cell, self.lanes.submit(host_of(cell), partial(self.resolve, cell)))

    def _keep(self, cell: str, future: "Future[Outcome]") -> "Future[Outcome]":
        self.started[_key(cell)] = future
        return future


def chars_of(row: Row) -> int:
    return sum(map(len, row.values()))


def _key(cell: str) -> bytes:
    return sha256(cell.encode("utf-8", "surrogatepass")).digest()


def image_cells(row: Row, rules: RowMapping) -> list[tuple[str, str]]:
    """Column and cell of each image, in the order of `build_conversation`."""
    return [
        (column, cell)
        for column in rules.image_url_columns
        for cell in split_image_cell(row[column], rules.image_separator)
    ]


def host_of(cell: str) -> str:
    """Whose turn it takes; nobody's for what is not fetched."""
    if is_path(cell) or is_data_uri(cell):
        return ""
    from ftproject.core.fetch import host_of as host_of_url

    return host_of_url(cell)


def _outcome(cell: str, *, hosts: HostRecord, retry_failed: bool) -> Outcome:
    try:
        return resolve_image(cell, hosts=hosts, retry_failed=retry_failed)
    except ImageRefusedError as exc:
        return exc


def _archived_outcome(cell: str, found: Found) -> Outcome:
    try:
        return found if isinstance(found, ImageRefusedError) else archived_image(cell, found)
    except ImageRefusedError as exc:
        return exc


def arrived(pending: PendingRow, should_stop: Callable[[], bool]) -> bool:
    """Waits for the row's images; False when a stop came first."""
    futures = [image.outcome for image in pending.images]
    while not should_stop():
        if not wait(futures, timeout=STOP_POLL_SECONDS).not_done:
            return True
    return False


def _prepared(pending: PendingRow, rules: RowMapping, lost: Counter[str]) -> PreparedRow:
    conversation = pending.conversation
    paths: list[Path] = []
    reason = conversation.skipped_reason
    for image in pending.images:
        column, outcome = image.column, image.outcome.result()
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


def image_warnings(lost: Counter[str]) -> list[str]:
    return [
        f"{count} image{'s' if count > 1 else ''} of column {where} left out; the rows go without"
        for where, count in lost.most_common()
    ]
