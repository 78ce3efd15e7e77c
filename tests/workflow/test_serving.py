"""`manage.py serve` and its processes: queueing, Ctrl+C, kill -9, connections, events across processes."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.workflow.served import ROOT, Served, free_port, served, wait_until_healthy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MAPPING = {
    "prompt_column": "prompt",
    "response_column": "answer",
    "image_url_columns": ["image"],
    "mandatory_columns": ["image"],
}
LONG = {"sft_config": {"max_steps": 100_000, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}}
QUICK = {"sft_config": {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}}


@pytest.fixture
def own_server(tmp_path: Path, data_csv: Path) -> Iterator[Served]:
    """For what ends the whole server."""
    with served(tmp_path / "data") as server:
        load_rows(server, data_csv)
        yield server


@dataclass(frozen=True)
class AtStart:
    """The web process before its first upload."""

    resident: int
    maps: str


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, data_csv: Path) -> Iterator[tuple[Served, AtStart]]:
    with served(tmp_path_factory.mktemp("serving") / "data") as server:
        web = web_process(server)
        at_start = AtStart(web.memory_info().rss, Path(f"/proc/{web.pid}/maps").read_text())
        load_rows(server, data_csv)
        yield server, at_start


@pytest.fixture
def server(started: tuple[Served, AtStart]) -> Iterator[Served]:
    """One server for all tests that leave it as it was: with rows and a mapping, and nothing running."""
    server = started[0]
    yield server
    stop_whatever_runs(server)


def stop_whatever_runs(server: Served) -> None:
    for run in server.get("/api/training/runs", page_size=20)["runs"]:
        if run["status"] not in {"completed", "error"}:
            server.post(f"/api/training/runs/{run['id']}/stop").raise_for_status()
            server.wait_for(f"/api/training/runs/{run['id']}", "status", {"completed", "error"})


def load_rows(server: Served, path: Path) -> None:
    with path.open("rb") as stream:
        answer = httpx.post(f"{server.url}/api/datasets/upload", files={"file": (path.name, stream)}, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert server.post("/api/datasets/mapping", MAPPING).status_code == 200


def start(server: Served, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post("/api/training/start", body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def wait_for_training(server: Served, run_id: int) -> None:
    run = server.wait_for(f"/api/training/runs/{run_id}", "status", {"training", "completed", "error"})
    assert run["status"] == "training", run


def run_process(server: Served) -> psutil.Process:
    return next(process for process in server.tree() if "ftproject.worker" in process.cmdline())


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """True when all have ended; one that has ended and that pid 1 has yet to collect (a zombie) counts as gone."""
    deadline = time.monotonic() + seconds
    while any(lives(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_during_training_saves_the_adapter_and_leaves_no_process(own_server: Served) -> None:
    server = own_server
    run_id = start(server, LONG)["run_id"]
    wait_for_training(server, run_id)
    waiting = start(server, QUICK)
    assert (waiting["status"], waiting["queue_position"]) == ("queued", 1)
    family = server.tree()
    began = time.monotonic()
    assert server.interrupt() == 0
    assert gone(family, 1)
    assert time.monotonic() - began < 15
    with served(server.data_dir) as again:
        run = again.get(f"/api/training/runs/{run_id}")
        assert (run["status"], run["stopped_early"]) == ("completed", True)
        assert (Path(run["adapter_path"]) / "adapter_model.safetensors").exists()
        # The run that waited was not lost: it starts with the server.
        ended = again.wait_for(f"/api/training/runs/{waiting['run_id']}", "status", {"completed", "error"})
        assert ended["status"] == "completed", ended["error"]


def test_each_process_killed_in_its_turn_costs_no_more_than_the_run_it_worked_on(server: Served) -> None:
    first, second, third = (start(server, body)["run_id"] for body in (LONG, LONG, QUICK))
    wait_for_training(server, first)
    run_process(server).kill()
    run = server.wait_for(f"/api/training/runs/{first}", "status", {"error"}, seconds=30)
    assert "SIGKILL" in run["error"]

    # The next one starts by itself. The web process is started again, and the run goes on meanwhile.
    server.wait_for_step(second, 1)
    running, web = run_process(server), web_process(server)
    web.kill()
    assert gone([web], 10)
    wait_until_healthy(server)
    run = server.get(f"/api/training/runs/{second}")
    assert run["status"] == "training"
    server.wait_for_step(second, run["current_step"] + 5)
    assert running.is_running()

    # The queue takes its run with it and is started again; the run that waited is not lost.
    queue = next(process for process in server.tree() if "qcluster" in process.cmdline())
    queue.kill()
    run = server.wait_for(f"/api/training/runs/{second}", "status", {"error"}, seconds=30)
    assert "without a word" in run["error"] or "SIGKILL" in run["error"]
    ended = server.wait_for(f"/api/training/runs/{third}", "status", {"completed", "error"})
    assert ended["status"] == "completed", ended["error"]


def test_everything_killed_at_once_is_an_error_after_the_next_start(own_server: Served) -> None:
    server = own_server
    run_id = start(server, LONG)["run_id"]
    wait_for_training(server, run_id)
    family = server.tree()
    for process in family:
        process.kill()
    assert gone(family, 5)
    server.process.wait()
    with served(server.data_dir) as again:
        run = again.wait_for(f"/api/training/runs/{run_id}", "status", {"error"}, seconds=30)
        assert "without a word" in run["error"]
        assert again.get("/api/training/status")["status"] == "error"


def try_to_serve(data_dir: Path, port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "serve", "--port", str(port)],
        env={"PATH": "/usr/bin:/bin", "QWEN3VL_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_second_server_on_the_same_data_is_refused_with_the_address_of_the_first(server: Served) -> None:
    second = try_to_serve(server.data_dir, free_port())
    assert second.returncode != 0
    assert f"127.0.0.1:{server.port}" in second.stderr


def test_a_taken_port_is_refused_with_what_to_do(server: Served, tmp_path: Path) -> None:
    taken = try_to_serve(tmp_path / "other", server.port)
    assert taken.returncode != 0
    assert "--port" in taken.stderr


def web_process(server: Served) -> psutil.Process:
    return next(process for process in server.tree() if "uvicorn" in process.cmdline())


def database_handles(process: psutil.Process) -> int:
    return sum("database.sqlite3" in str(opened.path) for opened in process.open_files())


def test_the_web_process_is_small_at_start_and_never_loads_torch(started: tuple[Served, AtStart]) -> None:
    server, at_start = started
    assert at_start.resident < 120 * 1024 * 1024
    now = Path(f"/proc/{web_process(server).pid}/maps").read_text()
    assert "libtorch" not in at_start.maps + now


def test_requests_open_no_database_connection_of_their_own(server: Served) -> None:
    def read(_: int) -> int:
        return httpx.get(f"{server.url}/api/datasets/info", timeout=30, trust_env=False).status_code

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(200)))
        assert set(pool.map(read, range(400))) == {200}
    # 32 threads at most, and up to three files (database, log, shared memory) each; a connection per request made 400.
    assert database_handles(web_process(server)) <= 3 * 34


def test_events_of_a_run_reach_ten_sockets_complete_and_in_order(server: Served) -> None:
    address = f"ws://localhost:{server.port}/ws?types=training_status,training_progress,training_complete"

    def listen(_: int) -> list[tuple[int, str, float]]:
        frames: list[tuple[int, str, float]] = []
        with connect(address, proxy=None) as socket:
            while not frames or frames[-1][1] != "training_complete":
                frame = json.loads(socket.recv(timeout=120))
                sent = datetime.fromisoformat(frame["timestamp"]).timestamp()
                frames.append((frame["id"], frame["type"], time.time() - sent))
        return frames

    with ThreadPoolExecutor(10) as pool:
        sockets = [pool.submit(listen, number) for number in range(10)]
        time.sleep(1)
        run_id = start(server, {"sft_config": {**QUICK["sft_config"], "max_steps": 20}})["run_id"]
        received = [socket.result(timeout=180) for socket in sockets]
    stored = [event["id"] for event in server.get(f"/api/training/runs/{run_id}/events", limit=500)["events"]]
    for frames in received:
        assert [number for number, _, _ in frames] == stored
    delays = [delay for frames in received for _, _, delay in frames]
    assert statistics.median(delays) < 1.0  # the quarter of a second is measured in benchmarks, not asserted here


def test_a_socket_of_another_site_is_refused(server: Served) -> None:
    with pytest.raises(Exception, match=r"403|4401|rejected"):  # noqa: SIM117
        with connect(f"ws://localhost:{server.port}/ws", origin=Origin("https://evil.example"), proxy=None) as socket:
            socket.recv(timeout=5)


def test_an_upload_that_is_cut_off_stores_nothing(server: Served) -> None:
    import socket

    before = server.get("/api/datasets/info")
    before_upload = len(server.get("/api/datasets/")["datasets"])
    head = (
        "POST /api/datasets/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="file"; filename="cut.csv"\r\n\r\nprompt,answer\r\n1,2\r\n'
    )
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode())
    time.sleep(1)
    assert server.get("/api/datasets/info") == before
    assert len(server.get("/api/datasets/")["datasets"]) == before_upload


def test_a_body_in_chunks_without_a_length_is_a_411(server: Served) -> None:
    answer = httpx.post(f"{server.url}/api/sessions/", content=iter([b"{}"]), trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (411, "length_required")


def test_the_demo_command_runs_against_a_server_and_prints_its_table(server: Served) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), "demo", "--url", server.url, "--max-steps", "3"],
        env={"PATH": "/usr/bin:/bin", "QWEN3VL_DATA_DIR": str(server.data_dir), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "held-out rows that training never saw" in result.stdout
    assert "Exact match" in result.stdout
    adapter = next(line for line in result.stdout.splitlines() if line.startswith("Adapter: ")).removeprefix(
        "Adapter: "
    )
    assert Path(adapter).is_dir()
