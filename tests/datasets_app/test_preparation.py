"""Preparing the rows of a run: order kept, images once, failures told per row or counted, stops obeyed."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import pytest

from datasets_app import preparation
from datasets_app.models import ColumnMapping, Dataset
from datasets_app.preparation import PreparedRow, PreparedRows, image_warnings, iter_prepared, prepare_rows
from datasets_app.services import mapping_set
from ftproject.engine.conversations import build_conversation
from tests.core.image_server import ImageServer, response
from tests.datasets_app.conftest import Upload
from tests.datasets_app.test_images import data_uri, png

Prepare = Callable[..., PreparedRows]


@pytest.fixture
def server(settings: Any) -> Iterator[ImageServer]:
    with ImageServer() as running:
        settings.IMAGE_ALLOWED_HOSTS = [f"127.0.0.1:{running.port}"]
        yield running


@pytest.fixture
def prepare(upload: Upload) -> Prepare:
    def run(rows: list[tuple[str, str, str]], *, options: dict[str, Any] | None = None, **mapping: Any) -> PreparedRows:
        lines = "".join(f'{prompt},{response},"{image}"\n' for prompt, response, image in rows)
        upload(f"prompt,response,image\n{lines}".encode())
        dataset = Dataset.objects.get(is_current=True)
        columns = {"prompt_column": "prompt", "response_column": "response", "image_url_columns": ["image"]}
        saved: ColumnMapping = mapping_set(dataset=dataset, **{**columns, **mapping})
        given: dict[str, Any] = {"limit": None, "should_stop": lambda: False, "on_progress": lambda done, total: None}
        return prepare_rows(dataset=dataset, mapping=saved, **{**given, **(options or {})})

    return run


def test_rows_come_in_order_with_their_images(prepare: Prepare, server: ImageServer) -> None:
    def slow(_: ImageServer) -> Iterator[bytes]:
        time.sleep(0.3)
        yield response(png("red"))

    server.answers |= {"/slow.png": slow, "/fast.png": response(png("blue"))}
    cells = [server.url("/slow.png"), server.url("/fast.png"), data_uri(png("green")), ""]
    prepared = prepare([(f"p{number}", "r", cell) for number, cell in enumerate(cells)])
    assert [row.index for row in prepared.rows] == [0, 1, 2, 3]
    found = [[path.read_bytes() for path in row.resolved.image_paths] for row in prepared.rows]
    assert found == [[png("red")], [png("blue")], [png("green")], []]
    assert prepared.warnings == []
    assert prepared.rows[0].row == {"prompt": "p0", "response": "r", "image": cells[0]}


def test_an_image_that_many_rows_share_is_fetched_once(prepare: Prepare, server: ImageServer) -> None:
    server.answers["/cat.png"] = response(png())
    prepared = prepare([("p", "r", server.url("/cat.png"))] * 40)
    assert len(server.requests) == 1
    assert len({row.resolved.image_paths for row in prepared.rows}) == 1


def test_images_are_fetched_concurrently_within_the_limit(prepare: Prepare, server: ImageServer, settings: Any) -> None:
    settings.IMAGE_CONCURRENCY = 4
    lock, now, most = threading.Lock(), 0, 0

    def answer(_: ImageServer) -> Iterator[bytes]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1
        yield response(png())

    server.answers |= {f"/{number}.png": answer for number in range(16)}
    prepare([("p", "r", server.url(f"/{number}.png")) for number in range(16)])
    assert 2 <= most <= 4


def test_a_failed_mandatory_image_skips_its_row_with_the_reason(prepare: Prepare, server: ImageServer) -> None:
    server.answers["/cat.png"] = response(png())
    rows = [("a", "r", server.url("/gone.png")), ("b", "r", server.url("/cat.png")), ("c", "r", "")]
    prepared = prepare(rows, mandatory_columns=["image"])
    assert [row.skipped for row in prepared.rows] == [True, False, True]
    assert "404" in str(prepared.rows[0].skipped_reason)
    assert "image_fetch_failed" in str(prepared.rows[0].skipped_reason)
    assert prepared.rows[0].resolved.conversation.skipped
    assert "empty" in str(prepared.rows[2].skipped_reason)


def test_a_failed_optional_image_leaves_the_row_without_it_and_is_counted(prepare: Prepare) -> None:
    private = "http://10.0.0.1/cat.png"
    prepared = prepare([("a", "r", private), ("b", "r", private), ("c", "r", data_uri(png()))])
    assert [row.skipped for row in prepared.rows] == [False, False, False]
    assert [len(row.resolved.image_paths) for row in prepared.rows] == [0, 0, 1]
    assert [len(row.resolved.conversation.images) for row in prepared.rows] == [0, 0, 1]
    assert prepared.warnings == ["2 images of column 'image': image_url_refused left out; the rows go without"]


def test_a_row_left_with_nothing_is_skipped(prepare: Prepare) -> None:
    prepared = prepare([("", "r", "http://10.0.0.1/cat.png")])
    assert prepared.rows[0].skipped_reason == "neither a prompt nor an image"


def test_several_images_of_a_cell_keep_their_order(prepare: Prepare) -> None:
    cell = f"{data_uri(png('red'))}|{data_uri(png('blue'))}"
    [row] = prepare([("p", "r", cell)], image_separator="|").rows
    assert [path.read_bytes() for path in row.resolved.image_paths] == [png("red"), png("blue")]


def test_images_are_named_by_content_so_that_splits_agree_between_machines(prepare: Prepare) -> None:
    [row] = prepare([("p", "r", data_uri(png()))]).rows
    assert row.resolved.conversation.images == (f"sha256:{row.resolved.image_paths[0].name}",)


def test_the_limit_takes_rows_from_the_top_and_progress_counts_to_it(prepare: Prepare) -> None:
    seen: list[tuple[int, int]] = []
    options = {"limit": 2, "on_progress": lambda done, total: seen.append((done, total))}
    prepared = prepare([("a", "r", ""), ("b", "r", ""), ("c", "r", "")], options=options)
    assert [row.index for row in prepared.rows] == [0, 1]
    assert seen == [(1, 2), (2, 2)]


def test_named_rows_alone_are_prepared(prepare: Prepare) -> None:
    prepared = prepare([("a", "r", ""), ("b", "r", ""), ("c", "r", "")], options={"indices": [2, 0, 7]})
    assert [row.index for row in prepared.rows] == [0, 2]


def test_a_stop_gives_back_what_is_ready_without_waiting_for_slow_images(prepare: Prepare, server: ImageServer) -> None:
    leave = threading.Event()

    def stuck(_: ImageServer) -> Iterator[bytes]:
        leave.wait(10)
        yield response(png())

    server.answers["/stuck.png"] = stuck
    began = time.monotonic()
    rows = [("a", "r", ""), ("b", "r", server.url("/stuck.png"))]
    prepared = prepare(rows, options={"should_stop": lambda: time.monotonic() - began > 1})
    assert time.monotonic() - began < 5
    assert [row.index for row in prepared.rows] == [0]
    leave.set()


def test_rows_come_one_by_one_with_the_images_of_the_next_under_way(
    upload: Upload, server: ImageServer, settings: Any
) -> None:
    """Without their cells; what is left out is counted as the rows come."""
    settings.IMAGE_CONCURRENCY = 2
    server.answers |= {f"/{number}.png": response(png()) for number in range(60)}
    dataset, mapping = uploaded(upload, [server.url(f"/{number}.png") for number in range(60)])
    lost: Counter[str] = Counter()
    with closing(iterated(dataset, mapping, lost=lost, ahead=30)) as rows:
        first = next(rows)
        deadline = time.monotonic() + 10
        while len(server.requests) < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (first.index, first.row, len(first.resolved.image_paths)) == (0, None, 1)
        assert 30 <= len(server.requests) < 60
        assert [row.index for row in rows] == list(range(1, 60))
    assert lost == Counter()


def test_rows_that_hold_their_images_wait_by_characters_not_by_rows(
    upload: Upload, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.IMAGE_CONCURRENCY = 1
    monkeypatch.setattr(preparation, "WAITING_CHARS", 3000)
    dataset, mapping = uploaded(upload, [data_uri(png()) + " " * 500 for _ in range(80)])
    read: list[int] = []
    build = build_conversation

    def counting(index: int, *args: Any) -> Any:
        read.append(index)
        return build(index, *args)

    monkeypatch.setattr(preparation, "build_conversation", counting)
    with closing(iterated(dataset, mapping, ahead=70)) as rows:
        next(rows)
        # Two steps of four rows for each fetching thread; 70 would have been read without the bound.
        assert len(read) <= 8
        assert len(list(rows)) == 79


def test_a_stop_ends_the_rows_and_lost_images_are_counted(upload: Upload) -> None:
    dataset, mapping = uploaded(upload, ["http://10.0.0.1/cat.png"] * 9)
    lost: Counter[str] = Counter()
    asked = iter([False] * 3 + [True] * 99)
    rows = list(iterated(dataset, mapping, lost=lost, should_stop=lambda: next(asked)))
    assert 0 < len(rows) <= 3
    (warning,) = image_warnings(lost)
    assert warning.startswith(f"{len(rows)} image")


def uploaded(upload: Upload, images: list[str]) -> tuple[Dataset, ColumnMapping]:
    upload(b"prompt,response,image\n" + "".join(f'p{n},r,"{image}"\n' for n, image in enumerate(images)).encode())
    dataset = Dataset.objects.get(is_current=True)
    columns = {"prompt_column": "prompt", "response_column": "response", "image_url_columns": ["image"]}
    return dataset, mapping_set(dataset=dataset, **columns, mandatory_columns=[])


def iterated(dataset: Dataset, mapping: ColumnMapping, **options: Any) -> Generator[PreparedRow, None, None]:
    given: dict[str, Any] = {"limit": None, "should_stop": lambda: False, "lost": Counter(), "ahead": 0}
    return iter_prepared(dataset=dataset, mapping=mapping, **{**given, "indices": range(10**6), **options})
