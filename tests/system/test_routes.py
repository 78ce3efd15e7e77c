"""Health, GPU, model status and unloading."""

from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError
from django.test import Client

from ftproject.core.lease import acquire_lease
from ftproject.system import selectors

NO_FACTS = {
    "device_name": None,
    "memory_total_mb": None,
    "memory_used_mb": None,
    "memory_free_mb": None,
    "utilization_percent": None,
    "temperature_c": None,
    "power_w": None,
}
pytestmark = pytest.mark.django_db


@pytest.fixture
def client(data_dir: Path) -> Client:
    return Client(HTTP_HOST="localhost")


@pytest.mark.parametrize("slash", ["", "/"])
def test_health_is_ok_and_names_what_the_server_works_with(client: Client, slash: str) -> None:
    answer = client.get(f"/api/system/health{slash}")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "ok"
    assert body["version"] == "0.1.0"
    assert body["database"] in {"sqlite", "postgresql"}
    assert body["device"]
    assert body["default_model_name"]


def test_health_stays_200_without_a_queue_worker_and_says_so(client: Client) -> None:
    answer = client.get("/api/system/health")
    assert (answer.status_code, answer.json()["queue_worker"]) == (200, False)


def test_health_is_503_without_the_database(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    class DeadConnection:
        vendor = "sqlite"

        def cursor(self) -> Any:
            raise DatabaseError("unable to open database file /secret/path")

    monkeypatch.setattr(selectors, "connection", DeadConnection())
    answer = client.get("/api/system/health")
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert "/secret" not in answer.content.decode()


def test_health_answers_when_the_default_model_cannot_be_used_here(client: Client, settings: Any) -> None:
    settings.DEFAULT_MODEL_NAME = "gpt2"
    body = client.get("/api/system/health").json()
    assert (body["status"], body["default_model_name"]) == ("ok", None)


@pytest.mark.parametrize("slash", ["", "/"])
def test_without_a_gpu_it_is_said_and_every_fact_is_null(
    client: Client, slash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftproject.engine.gpu._read_devices", lambda read: [])
    answer = client.get(f"/api/system/gpu{slash}")
    assert answer.status_code == 200
    assert answer.json() == {"available": False, **NO_FACTS, "devices": []}


def test_with_gpus_the_first_ones_facts_stand_at_the_top(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {**NO_FACTS, "device_name": "NVIDIA RTX 5090", "memory_total_mb": 32768}
    devices = [{"index": 0, **facts}, {"index": 1, **facts, "device_name": "other"}]
    monkeypatch.setattr("ftproject.engine.gpu._read_devices", lambda read: devices)
    body = client.get("/api/system/gpu").json()
    assert (body["available"], body["device_name"], body["memory_total_mb"]) == (True, "NVIDIA RTX 5090", 32768)
    assert [device["index"] for device in body["devices"]] == [0, 1]


@pytest.mark.parametrize("slash", ["", "/"])
def test_before_any_request_no_model_is_loaded(client: Client, slash: str) -> None:
    body = client.get(f"/api/system/model-status{slash}").json()
    assert (body["loaded"], body["mode"], body["adapter"]) == (False, None, None)
    assert set(body.values()) == {False, None}


def test_model_status_says_which_run_has_the_gpu(client: Client) -> None:
    assert acquire_lease("training:5")
    body = client.get("/api/system/model-status").json()
    assert (body["loaded"], body["gpu_holder"]) == (False, "training:5")


@pytest.mark.parametrize("slash", ["", "/"])
def test_unloading_is_200_also_when_nothing_was_loaded(client: Client, slash: str) -> None:
    for _ in range(2):
        answer = client.post(f"/api/system/unload-model{slash}")
        assert (answer.status_code, answer.json()) == (200, {"status": "unloaded"})


def test_unloading_takes_no_gpu_from_a_run(client: Client) -> None:
    assert acquire_lease("training:5")
    client.post("/api/system/unload-model")
    assert client.get("/api/system/model-status").json()["gpu_holder"] == "training:5"


@pytest.mark.parametrize(
    ("method", "path"),
    [("post", "health"), ("delete", "gpu"), ("put", "model-status"), ("get", "unload-model")],
)
def test_another_method_is_405(client: Client, method: str, path: str) -> None:
    answer = getattr(client, method)(f"/api/system/{path}")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


def test_an_unknown_system_route_is_a_404_problem(client: Client) -> None:
    answer = client.get("/api/system/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
