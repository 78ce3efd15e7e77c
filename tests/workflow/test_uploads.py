"""Uploads to a served instance: limits that hold before the body, cut-off and killed uploads, many at once."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.workflow.served import Served, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
LIMIT_MB = 64
SMALL = b"prompt,response\na,b\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("uploads") / "data", QWEN3VL_MAX_UPLOAD_MB=str(LIMIT_MB)) as server:
        yield server


def upload(server: Served, content: bytes, name: str = "data.csv") -> httpx.Response:
    files = {"file": (name, content)}
    return httpx.post(f"{server.url}/api/datasets/upload", files=files, timeout=120, trust_env=False)


def datasets(server: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get("/api/datasets/")["datasets"]
    return found


def files_in(server: Served, folder: str) -> list[str]:
    return sorted(path.name for path in (server.data_dir / folder).iterdir())


def begin_upload(server: Served, length: int) -> socket.socket:
    """The head of a multipart upload, and the head of its one part."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head = (
        "POST /api/datasets/upload HTTP/1.1\r\n"
        f"Host: localhost:{server.port}\r\n"
        "Content-Type: multipart/form-data; boundary=edge\r\n"
        f"Content-Length: {length}\r\n\r\n"
        '--edge\r\nContent-Disposition: form-data; name="file"; filename="data.csv"\r\n\r\nprompt,response\n'
    )
    connection.sendall(head.encode())
    return connection


def many_rows(rows: int) -> bytes:
    return b"prompt,response\n" + b"".join(b"a prompt of row %d,its answer\n" % number for number in range(rows))


def wait_until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_an_upload_announced_too_large_is_refused_before_it_is_sent(server: Served) -> None:
    with begin_upload(server, (LIMIT_MB + 1) * 1024 * 1024) as connection:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        assert json.loads(answer.read())["code"] == "too_large"
    assert files_in(server, "tmp") == []


def test_an_upload_that_the_client_cuts_off_leaves_nothing(server: Served) -> None:
    before = datasets(server)
    with begin_upload(server, 10_000_000) as connection:
        connection.sendall(b"a,b\n" * 100_000)
        wait_until(lambda: files_in(server, "tmp"))
    wait_until(lambda: not files_in(server, "tmp"))
    assert datasets(server) == before


def test_a_slow_upload_holds_up_nobody(server: Served) -> None:
    with begin_upload(server, 10_000_000) as connection:
        connection.sendall(b"a,b\n" * 100_000)
        wait_until(lambda: files_in(server, "tmp"))
        assert upload(server, SMALL).status_code == 200
        assert server.get("/api/datasets/info")["loaded"] is True


@pytest.mark.parametrize("rows", [10, 200_000], ids=["in the web process", "in child processes"])
def test_the_same_file_many_times_at_once_is_stored_once(server: Served, rows: int) -> None:
    before = len(datasets(server))
    content = many_rows(rows)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda number: upload(server, content, f"{number}.csv"), range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6, answers[0].text
    assert len({answer.json()["dataset_id"] for answer in answers}) == 1
    assert len(datasets(server)) == before + 1
    stored = files_in(server, "datasets")
    assert stored.count(f"{answers[0].json()['sha256']}.parquet") == 1
    assert not [name for name in stored if name.startswith(".partial-")]


def test_different_files_at_once_leave_one_current_dataset(server: Served) -> None:
    contents = [b"prompt,response\na,%d\n" % number for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda content: upload(server, content), contents))
    assert [answer.status_code for answer in answers] == [200] * 8
    listed = datasets(server)
    assert {answer.json()["dataset_id"] for answer in answers} <= {entry["dataset_id"] for entry in listed}
    assert sum(entry["is_current"] for entry in listed) == 1


def test_a_refusal_found_in_the_child_process_names_its_place(server: Served) -> None:
    before = datasets(server)
    answer = upload(server, many_rows(100_000) + b"one cell\n")
    assert (answer.status_code, answer.json()["code"]) == (400, "ragged_row")
    assert answer.json()["errors"][0] | {"message": ""} == {
        "code": "ragged_row",
        "message": "",
        "field": "file",
        "row": 100_001,
        "column": "response",
    }
    assert datasets(server) == before


def child_of(server: Served) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process for process in server.tree() if "datasets_app.ingestion.child" in process.cmdline()]
    return []


def test_a_server_killed_in_the_middle_of_an_upload_keeps_what_was_there(tmp_path: Path) -> None:
    big = many_rows(1_500_000)
    with served(tmp_path / "data") as server:
        before = upload(server, SMALL).json()
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(upload, server, big)
            wait_until(lambda: any(name.startswith(".partial-") for name in files_in(server, "datasets")))
            family = server.tree()
            child = child_of(server)
            assert child
            for process in family:
                if process not in child:
                    process.kill()
            assert isinstance(pending.exception(timeout=30), httpx.HTTPError)
        assert psutil.wait_procs(child, timeout=10)[1] == []
    assert [name for name in files_in(server, "datasets") if not name.startswith(".partial-")] == [
        f"{before['sha256']}.parquet"
    ]
    with served(tmp_path / "data") as again:
        assert [(entry["dataset_id"], entry["is_current"]) for entry in datasets(again)] == [
            (before["dataset_id"], True)
        ]
        rows = json.loads(again.post("/api/datasets/preview", {"page": 1}).content)["rows"]
        assert rows == [{"prompt": "a", "response": "b"}]
        assert upload(again, big).json()["num_rows"] == 1_500_000
