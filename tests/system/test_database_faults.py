"""A database that is locked or full at any write of any request: a plain 503, nothing half done, and it works later."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection
from django.test import Client

from datasets_app.models import Dataset
from tests.training_app.lora_folders import folder_members, write_adapter_folder, zip_of
from tests.training_app.world import Api, queued, trained_run
from training_app.models import TrainingRun

WRITES = ("INSERT", "UPDATE", "DELETE")
FAULTS = {"database is locked": "database_busy", "database or disk is full": "disk_full"}
CSV = b"prompt,answer\nWhich?,one\nWhich?,two\n"
MAPPING = {"prompt_column": "prompt", "response_column": "answer"}
Call = Callable[[Client, "World"], Any]


class World:
    """Something of everything that can be written to."""

    def __init__(self, api: Api, folder: Path) -> None:
        self.run = trained_run(api, sft_config={"max_steps": 2})
        self.waiting = queued(api)
        self.session = api.post("/api/sessions/", {"name": "one"}).json()["id"]
        self.zip = zip_of(folder_members(write_adapter_folder(folder / "lora")))
        self.upload = Dataset.objects.get().pk
        self.adapter = self.run.adapter.name


def post(path: str, body: Any = None) -> Call:
    def call(client: Client, world: World) -> Any:
        return client.post(path.format(w=world), data=body or {}, content_type="application/json")

    return call


def delete(path: str) -> Call:
    return lambda client, world: client.delete(path.format(w=world))


def send(path: str, data: Callable[[World], bytes], name: str) -> Call:
    def call(client: Client, world: World) -> Any:
        return client.post(path.format(w=world), {"file": SimpleUploadedFile(name, data(world))})

    return call


CALLS: dict[str, Call] = {
    "upload": send("/api/datasets/upload", lambda _: CSV, "rows.csv"),
    "mapping": post("/api/datasets/mapping", MAPPING | {"image_url_columns": []}),
    "activate": post("/api/datasets/{w.upload}/activate"),
    "prefetch": post("/api/datasets/images/prefetch"),
    "preflight": post("/api/datasets/preflight", {"wait_seconds": 0}),
    "start": post("/api/training/start", {}),
    "stop": post("/api/training/runs/{w.waiting.pk}/stop"),
    "delete adapter": delete("/api/training/adapters/{w.adapter}"),
    "import adapter": send("/api/training/adapters/import", lambda world: world.zip, "taken.zip"),
    "evaluate": post("/api/evaluation/run", {"adapter_path": None}),
    "create session": post("/api/sessions/", {"name": "two"}),
    "clone session": post("/api/sessions/{w.session}/clone"),
    "start session": post("/api/sessions/{w.session}/start"),
    "delete session": delete("/api/sessions/{w.session}"),
}


class FailsAt:
    """Refuses the nth write, as SQLite does, and counts them all."""

    def __init__(self, number: int, words: str) -> None:
        self.number, self.words, self.writes, self.refused = number, words, 0, 0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(WRITES):
            self.writes += 1
            if self.writes >= self.number:
                self.refused += 1
                raise OperationalError(self.words)
        return execute(sql, params, many, context)


def state(folder: Path) -> dict[str, Any]:
    """How many rows of each kind, the runs' states, and every published file."""
    rows: dict[str, Any] = {model._meta.label: model._default_manager.count() for model in apps.get_models()}
    rows["runs"] = list(TrainingRun.objects.order_by("pk").values_list("pk", "status"))
    rows["files"] = sorted(str(path) for name in ("adapters", "datasets") for path in (folder / name).rglob("*"))
    return rows


pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def world(api: Api, dataset: Dataset, tmp_path: Path) -> World:
    return World(api, tmp_path)


@pytest.mark.parametrize("name", CALLS)
def test_each_write_of_each_request_may_fail_and_leaves_what_was_there(world: World, data_dir: Path, name: str) -> None:
    client, call = Client(HTTP_HOST="localhost"), CALLS[name]
    before, number = state(data_dir), 0
    while True:
        number += 1
        words = sorted(FAULTS)[number % 2]
        fault = FailsAt(number, words)
        with connection.execute_wrapper(fault):
            answer = call(client, world)
        if answer.status_code < 300:
            break
        assert (answer.status_code, answer.json()["code"]) == (503, FAULTS[words]), answer.content
        assert answer["Content-Type"] == "application/problem+json"
        assert words != "database is locked" or int(answer["Retry-After"]) > 0
        assert state(data_dir) == before, f"write {number}"
    assert number > 1, "it wrote nothing"
