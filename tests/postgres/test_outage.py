"""A served instance whose PostgreSQL is cut off and comes back: idle, while it trains, while it evaluates."""

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.postgres.databases import URL, own_database
from tests.postgres.proxy import CuttableProxy
from tests.workflow.conftest import digit_rows, write_csv
from tests.workflow.served import Served, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = 250
SEED = 20261122
# Longer than a heartbeat may be old, so that the reaper is tempted; shorter than anything gives up.
LONG_CUT_SECONDS = 26.0
SHORT_CUTS = 20
MAPPING = {"prompt_column": "prompt", "response_column": "answer", "image_url_columns": ["image"]}
TRAINING: dict[str, Any] = {
    "model_config_data": {"model_name": "tiny-qwen3-vl"},
    "sft_config": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 100_000,
        "save_steps": 50,
        "optim": "adamw_torch",
        "bf16": False,
    },
    "lora_config": {"r": 4},
}
EVALUATION: dict[str, Any] = {"generation_params": {"max_new_tokens": 8}, "reuse_base_predictions": False}


@dataclass
class Outage:
    server: Served
    proxy: CuttableProxy

    def start(self, path: str, body: dict[str, Any]) -> int:
        answer = self.server.post(path, body)
        assert answer.status_code in {200, 202}, answer.text
        return int(answer.json()["run_id"])

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(self.server.url + path, timeout=30, trust_env=False)

    def cut_for(self, seconds: float) -> int:
        broken = self.proxy.cut()
        time.sleep(seconds)
        self.proxy.restore()
        return broken

    def wait_until_back(self, path: str, seconds: float = 15) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while (answer := self.ask(path)).status_code != 200:
            assert answer.status_code == 503, answer.text
            assert time.monotonic() < deadline, f"still 503 {seconds} s after the database came back"
            time.sleep(0.1)
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def outage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    folder = tmp_path_factory.mktemp("outage")
    database = own_database(folder / "data").get(URL)
    if database is None:
        pytest.skip("needs PostgreSQL: make test-postgres")
    parts = urlsplit(database)
    assert parts.hostname
    assert parts.port
    proxy = CuttableProxy((parts.hostname, parts.port))
    through = urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")))
    try:
        with served(folder / "data", **{URL: through}) as server:
            table = write_csv(
                folder / "digits.csv", [{k: row[k] for k in ("prompt", "answer", "image")} for row in digit_rows(ROWS)]
            )
            with table.open("rb") as stream:
                httpx.post(
                    f"{server.url}/api/datasets/upload", files={"file": stream}, timeout=60, trust_env=False
                ).raise_for_status()
            server.post("/api/datasets/mapping", MAPPING).raise_for_status()
            yield Outage(server, proxy)
    finally:
        proxy.end()


def frames_until(socket: ClientConnection, event_type: str) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    while not frames or frames[-1]["type"] != event_type:
        frames.append(json.loads(socket.recv(timeout=300)))
    return [frame for frame in frames if frame["type"] != "gpu_stats"]


def events_of(outage: Outage, run_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        since = found[-1]["id"] if found else 0
        page = outage.server.get(f"/api/training/runs/{run_id}/events", since=since, limit=500)["events"]
        if not page:
            return found
        found += page


ROUTES = ["/api/datasets", "/api/training/runs", "/api/training/adapters", "/api/system/health"]


def test_without_its_database_the_web_answers_503_in_the_problem_shape_and_recovers_alone(outage: Outage) -> None:
    assert [outage.ask(path).status_code for path in ROUTES] == [200] * len(ROUTES)
    assert outage.proxy.cut() > 0
    try:
        for path in ROUTES * 3:
            answer = outage.ask(path)
            assert answer.status_code == 503, (path, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["code"] == "database_unavailable"
        assert outage.ask("/v1/models").status_code == 503
    finally:
        outage.proxy.restore()
    for path in ROUTES * 3:
        assert outage.ask(path).status_code == 200, path


def test_connections_that_broke_unseen_fail_no_request(outage: Outage) -> None:
    """The cut ends before anybody asks: every thread holds a dead connection and none may answer with its error."""
    for path in ROUTES * 4:
        outage.ask(path)
    assert outage.cut_for(0.3) > 0
    assert {outage.ask(path).status_code for path in ROUTES * 10} == {200}


def test_a_training_goes_on_through_a_long_cut_and_loses_no_step(outage: Outage) -> None:
    address = outage.server.url.replace("http", "ws") + "/ws"
    with connect(address, proxy=None) as socket, ThreadPoolExecutor(1) as reader:
        hearing = reader.submit(frames_until, socket, "training_complete")
        run_id = outage.start("/api/training/start", TRAINING)
        outage.server.wait_for_step(run_id, 5)
        outage.proxy.cut()
        try:
            time.sleep(1)
            assert outage.ask(f"/api/training/runs/{run_id}").status_code == 503
            time.sleep(LONG_CUT_SECONDS - 1)
        finally:
            outage.proxy.restore()
        reached = outage.wait_until_back(f"/api/training/runs/{run_id}")["current_step"]
        time.sleep(8)  # two looks of the reaper
        outage.server.wait_for_step(run_id, reached + 5)
        chance = random.Random(SEED)
        for _ in range(SHORT_CUTS):
            time.sleep(chance.uniform(0.1, 1.0))
            outage.cut_for(chance.uniform(0.05, 0.8))
        outage.wait_until_back(f"/api/training/runs/{run_id}")
        assert outage.server.post(f"/api/training/runs/{run_id}/stop").status_code == 202
        run = outage.server.wait_for(f"/api/training/runs/{run_id}", "status", {"completed", "error"})
        frames = hearing.result(timeout=60)
    assert (run["status"], run["stopped_early"], run["error"]) == ("completed", True, None)
    steps = [entry["step"] for entry in outage.server.get(f"/api/training/runs/{run_id}/metrics")["metrics"]]
    assert steps[-1] == run["current_step"] > reached
    told = [event["data"]["step"] for event in events_of(outage, run_id) if event["type"] == "training_progress"]
    assert sorted(set(told)) == list(range(1, run["current_step"] + 1))
    ids = [frame["id"] for frame in frames]
    assert ids == sorted(set(ids))
    assert (Path(run["adapter_path"]) / "adapter_model.safetensors").is_file()


def test_an_evaluation_goes_on_through_random_cuts_and_stores_each_row_once(outage: Outage) -> None:
    chance = random.Random(SEED)
    run_id = outage.start("/api/evaluation/run", EVALUATION)
    cuts = 0
    while True:
        time.sleep(chance.uniform(0.2, 1.0))
        outage.cut_for(chance.uniform(0.05, 1.5))
        cuts += 1
        run = outage.wait_until_back(f"/api/evaluation/runs/{run_id}")
        if run["status"] in {"completed", "error"}:
            break
        assert cuts < 200, run
    assert (run["status"], run["error"]) == ("completed", None)
    assert run["num_samples"] == ROWS
    page = outage.server.get(f"/api/evaluation/runs/{run_id}/samples", page_size=1)
    assert page["total"] == ROWS
    print(f"{cuts} cuts")


def test_the_queue_takes_up_a_run_that_was_started_before_a_cut(outage: Outage) -> None:
    first = outage.start("/api/evaluation/run", {**EVALUATION, "sample_limit": 5})
    second = outage.start("/api/evaluation/run", {**EVALUATION, "sample_limit": 6})
    outage.cut_for(3.0)
    for run_id in (first, second):
        outage.wait_until_back(f"/api/evaluation/runs/{run_id}")
        ended = outage.server.wait_for(f"/api/evaluation/runs/{run_id}", "status", {"completed", "error"})
        assert (ended["status"], ended["error"]) == ("completed", None)
