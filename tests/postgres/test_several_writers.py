"""Several writers on PostgreSQL: events in the order of their ids, one merge per name."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from ftproject.core.errors import ConflictError
from ftproject.core.events import publish
from ftproject.core.models import Event
from ftproject.core.tail import events_after, newest_id
from tests.postgres.conftest import Writers
from tests.training_app.lora_folders import registered_adapter
from training_app import merge_services
from training_app.models import Adapter, AdapterMerge


def say(message: str) -> int:
    return publish("training_status", {"run_id": 1, "status": "training", "message": message}).pk


def say_and_stay_open(message: str, published: threading.Event, release: threading.Event) -> int:
    with transaction.atomic():
        number = say(message)
        published.set()
        assert release.wait(30)
    return number


def wait_until_somebody_waits_for_a_lock() -> None:
    deadline = time.monotonic() + 10
    with connection.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
            time.sleep(0.02)
    pytest.fail("no writer waits for another: ids would be committed out of order")


def test_no_event_becomes_visible_before_one_with_a_lower_id(writers: Writers) -> None:
    published = threading.Event()
    before = newest_id()
    first = writers.start(say_and_stay_open, "first", published, writers.release)
    assert published.wait(10)
    second = writers.start(say, "second")
    wait_until_somebody_waits_for_a_lock()
    assert events_after(before) == []
    assert newest_id() == before
    writers.release.set()
    assert first.result(10) < second.result(10)
    assert [message["data"]["message"] for message in events_after(before)] == ["first", "second"]  # type: ignore[typeddict-item]


def test_an_event_that_is_rolled_back_holds_nobody_up(writers: Writers) -> None:
    before = newest_id()
    with transaction.atomic():
        say("never")
        transaction.set_rollback(True)
    writers.start(say, "second").result(10)
    assert [message["data"]["message"] for message in events_after(before)] == ["second"]  # type: ignore[typeddict-item]


def test_a_tail_that_follows_eight_writers_skips_nothing_and_repeats_nothing(writers: Writers) -> None:
    def write(writer: int) -> None:
        for number in range(40):
            with transaction.atomic():
                say(f"{writer}:{number}")
                if number % 7 == 0:
                    time.sleep(0.003)

    before = last = newest_id()
    at_work = [writers.start(write, writer) for writer in range(8)]
    seen: list[int] = []
    while not all(future.done() for future in at_work) or events_after(last):
        found = [message["id"] for message in events_after(last)]
        seen += found
        last = found[-1] if found else last
    assert [future.result() for future in at_work] == [None] * 8
    assert seen == list(Event.objects.filter(id__gt=before).order_by("id").values_list("id", flat=True))
    assert len(seen) == 320


def test_of_merges_of_two_adapters_to_one_name_one_starts(data_dir: Path, writers: Writers) -> None:
    adapters = [registered_adapter(name) for name in ("one", "two")]
    both = threading.Barrier(2)

    def start(adapter: Adapter) -> Any:
        request = merge_services.merge_request(adapter=adapter, model_name="same")
        both.wait(10)
        try:
            with transaction.atomic():
                started = merge_services.merge_create(request=request, idempotency_key=None, fingerprint="")
                time.sleep(0.2)  # the other one looks before this commit
                return started
        except ConflictError as refusal:
            return refusal.code

    ends = [writers.start(start, adapter) for adapter in adapters]
    assert [end.result(30) for end in ends].count("model_exists") == 1
    assert AdapterMerge.objects.count() == 1
