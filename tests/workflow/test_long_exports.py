"""A long export of a served instance: slow readers, readers who hang up, and a run that is deleted meanwhile."""

import contextlib
import csv
import io
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.workflow.served import Served, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROWS = 6000
CELL = "a word or two " * 250


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A completed run over 6,000 rows whose export is 45 MB."""
    with served(tmp_path_factory.mktemp("exports") / "data", QWEN3VL_BACKEND="fake") as server:
        stream = io.StringIO()
        csv.writer(stream).writerows(
            [("prompt", "answer", "note"), *((f"row {n}", "truth", CELL) for n in range(ROWS))]
        )
        files = {"file": ("data.csv", stream.getvalue().encode())}
        httpx.post(f"{server.url}/api/datasets/upload", files=files, timeout=60, trust_env=False).raise_for_status()
        mapping = {"prompt_column": "prompt", "response_column": "note", "ground_truth_column": "answer"}
        server.post("/api/datasets/mapping", mapping).raise_for_status()
        assert evaluated(server) == 1
        yield server


def evaluated(server: Served) -> int:
    """A run over all rows, completed."""
    run_id = int(server.post("/api/evaluation/run", {}).raise_for_status().json()["run_id"])
    server.wait_for(f"/api/evaluation/runs/{run_id}", "status", {"completed"})
    return run_id


def web_process(server: Served) -> psutil.Process:
    return next(process for process in server.tree() if "uvicorn" in process.cmdline())


def export(server: Served, run_id: int = 1) -> contextlib.AbstractContextManager[httpx.Response]:
    url = f"{server.url}/api/evaluation/export/{run_id}?format=csv"
    return httpx.stream("GET", url, timeout=60, trust_env=False)


def test_a_whole_export_has_every_row_and_the_process_stays_small(server: Served) -> None:
    web = web_process(server)
    with export(server) as answer:
        chunks = answer.iter_raw()
        lines = next(chunks).count(b"\n")
        before = peak = web.memory_full_info().uss  # with Arrow's libraries, which the first row maps
        for number, chunk in enumerate(chunks):
            lines += chunk.count(b"\n")
            peak = max(peak, web.memory_full_info().uss) if number % 50 == 0 else peak
    assert lines == ROWS + 1
    assert peak - before < 50 * 1024 * 1024


def test_a_slow_reader_holds_the_export_back_and_not_in_memory(server: Served) -> None:
    web = web_process(server)
    before = web.memory_full_info().uss
    with export(server) as answer:
        chunks = answer.iter_raw()
        for _ in range(3):
            next(chunks)
            time.sleep(0.5)
        assert web.memory_full_info().uss - before < 30 * 1024 * 1024
        cpu = sum(web.cpu_times()[:2])
        time.sleep(1)
        assert sum(web.cpu_times()[:2]) - cpu < 0.3  # it waits for the reader


def test_after_a_reader_hung_up_nothing_more_is_made(server: Served) -> None:
    web = web_process(server)
    start = sum(web.cpu_times()[:2])
    with export(server) as answer:
        for _ in answer.iter_raw():
            pass
    whole = sum(web.cpu_times()[:2]) - start
    assert whole > 0.1
    with export(server) as answer:
        next(answer.iter_raw())
    start = sum(web.cpu_times()[:2])
    time.sleep(2)
    assert sum(web.cpu_times()[:2]) - start < 0.5 * whole


def test_a_run_deleted_meanwhile_cuts_the_connection(server: Served) -> None:
    run_id = evaluated(server)
    with export(server, run_id) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        deleted = httpx.delete(f"{server.url}/api/evaluation/runs/{run_id}", timeout=60, trust_env=False)
        assert deleted.json() == {"status": "deleted", "id": run_id}
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            for _ in chunks:
                pass
    assert server.get("/api/system/health")["status"] == "ok"
