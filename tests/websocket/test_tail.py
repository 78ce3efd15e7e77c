"""The tailer and the `/ws` consumer: complete, in order, replayable, and a slow client is closed and not waited for."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from hypothesis import given
from hypothesis import strategies as st

from ftproject.core import tail as tail_module
from ftproject.core.events import EVENT_TYPES, EventMessage, prune_events, publish
from ftproject.core.models import Event
from ftproject.core.tail import Subscription, tail
from ftproject.system.consumer import EventConsumer, parse_query

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
async def quiet_tail() -> AsyncIterator[None]:
    yield
    for subscription in list(tail.subscriptions):
        tail.unsubscribe(subscription)


def progress(step: int, run_id: int = 1) -> None:
    publish(
        "training_progress",
        {
            "run_id": run_id,
            "step": step,
            "total_steps": 10,
            "epoch": 0.1,
            "loss": 1.0,
            "lr": 0.1,
            "grad_norm": 1.0,
            "eval_loss": None,
            "eval_exact_match": None,
            "eval_token_f1": None,
            "eta": 1.0,
        },
        run_kind="training",
        run_id=run_id,
    )


def publish_many(first: int, last: int) -> None:
    for step in range(first, last):
        progress(step)


def message(number: int, event_type: str = "training_progress", run_id: int = 1) -> EventMessage:
    data: Any = {"run_id": run_id, "step": number}
    return {"type": event_type, "id": number, "timestamp": "", "data": data}


async def connected(query: str = "") -> WebsocketCommunicator:
    socket = WebsocketCommunicator(EventConsumer.as_asgi(), f"/ws{query}")
    accepted, _ = await socket.connect()
    assert accepted
    await asyncio.sleep(0.05)
    return socket


async def receive(socket: WebsocketCommunicator, count: int, timeout: float = 5) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        frame = json.loads(await socket.receive_from(timeout=timeout))
        if frame["type"] != "gpu_stats":
            found.append(frame)
    return found


async def test_ten_sockets_receive_every_event_in_order() -> None:
    sockets = [await connected() for _ in range(10)]
    await sync_to_async(publish_many)(0, 100)
    for socket in sockets:
        frames = await receive(socket, 100)
        assert [frame["data"]["step"] for frame in frames] == list(range(100))
        ids = [frame["id"] for frame in frames]
        assert ids == sorted(set(ids))
        await socket.disconnect()


async def test_sockets_that_open_together_share_one_follower_and_get_each_event_once() -> None:
    sockets = await asyncio.gather(*(connected() for _ in range(10)))
    await sync_to_async(publish_many)(0, 20)
    for socket in sockets:
        frames = await receive(socket, 20)
        assert [frame["data"]["step"] for frame in frames] == list(range(20))
        assert await socket.receive_nothing(timeout=0.4) or await only_gpu_stats(socket)
        await socket.disconnect()


async def only_gpu_stats(socket: WebsocketCommunicator) -> bool:
    while not await socket.receive_nothing(timeout=0.1):
        if json.loads(await socket.receive_from())["type"] != "gpu_stats":
            return False
    return True


async def test_a_database_that_fails_at_the_first_look_only_delays_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = tail_module.newest_id, iter([True])

    def flaky() -> int:
        if next(failures, False):
            raise OSError("gone for a moment")
        return real()

    monkeypatch.setattr(tail_module, "newest_id", flaky)
    socket = await connected()
    await sync_to_async(publish_many)(0, 2)
    assert len(await receive(socket, 2)) == 2
    await socket.disconnect()


async def test_a_client_that_comes_back_gets_what_it_missed_without_gap_or_repeat() -> None:
    await sync_to_async(publish_many)(0, 30)
    since = await sync_to_async(lambda: list(Event.objects.order_by("id").values_list("id", flat=True))[9])()
    socket = await connected(f"?since={since}")
    await sync_to_async(publish_many)(30, 40)
    frames = await receive(socket, 30)
    assert [frame["data"]["step"] for frame in frames] == list(range(10, 40))
    await socket.disconnect()


async def test_a_long_replay_comes_page_by_page_without_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "REPLAY_PAGE", 7)
    await sync_to_async(publish_many)(0, 40)
    socket = await connected("?since=0")
    assert [frame["data"]["step"] for frame in await receive(socket, 40)] == list(range(40))
    await socket.disconnect()


async def test_types_filters_stored_and_live_events() -> None:
    await sync_to_async(publish_many)(0, 3)
    await sync_to_async(publish)("eval_error", {"run_id": 1, "error": "x"})
    socket = await connected("?since=0&types=eval_error")
    await sync_to_async(publish_many)(3, 5)
    await sync_to_async(publish)("eval_error", {"run_id": 2, "error": "y"})
    frames = await receive(socket, 2)
    assert [frame["data"]["error"] for frame in frames] == ["x", "y"]
    await socket.disconnect()


async def test_every_frame_has_type_id_timestamp_and_data() -> None:
    socket = await connected()
    await sync_to_async(publish_many)(0, 1)
    (frame,) = await receive(socket, 1)
    assert set(frame) == {"type", "id", "timestamp", "data"}
    await socket.disconnect()


async def test_gpu_stats_come_without_being_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    socket = await connected("?types=gpu_stats")
    frame = json.loads(await socket.receive_from(timeout=5))
    assert frame["type"] == "gpu_stats"
    assert frame["data"]["available"] in {True, False}
    assert not await Event.objects.filter(type="gpu_stats").aexists()
    await socket.disconnect()


@pytest.mark.parametrize("query", ["?since=x", "?since=-1", "?types=nothing", "?since=99999999999999999999"])
async def test_a_wrong_query_closes_the_socket_with_the_reason(query: str) -> None:
    socket = WebsocketCommunicator(EventConsumer.as_asgi(), f"/ws{query}")
    await socket.connect()
    closed = await socket.receive_output(timeout=2)
    assert (closed["type"], closed["code"]) == ("websocket.close", 4400)


FRAMES: list[dict[str, Any]] = [
    {"text_data": '{"drop": "tables"}'},
    {"text_data": "[" * 100_000},
    {"text_data": '{"type": "websocket.close", "a": NaN, "b": "\\ud800\0"}'},
    {"text_data": "a" * 2_000_000},
    {"bytes_data": b"\0"},
    {"bytes_data": b"\xff\xfe\0" * 100},
    {"bytes_data": bytes(2_000_000)},
]


async def test_what_a_client_says_is_ignored() -> None:
    socket = await connected()
    for frame in FRAMES:
        await socket.send_to(**frame)
    await sync_to_async(publish_many)(0, 1)
    assert len(await receive(socket, 1)) == 1
    await socket.disconnect()


@given(
    raw=st.binary(max_size=60)
    | st.lists(
        st.tuples(
            st.sampled_from(["since", "types", "x", ""]),
            st.sampled_from(
                ["1", "", "-1", "9" * 18, "9" * 19, "%D9%A1", "%00", "%ff", "1e3", "training_error", "gpu_stats,,"]
            ),
        ),
        max_size=4,
    ).map(lambda pairs: "&".join("=".join(pair) for pair in pairs).encode())
)
def test_a_query_is_understood_or_refused_and_nothing_else_is_raised(raw: bytes) -> None:
    try:
        since, types = parse_query(raw)
    except ValueError:
        return
    assert since is None or 0 <= since < 10**18
    assert types <= set(EVENT_TYPES)


async def test_the_tail_stops_with_its_last_socket() -> None:
    socket = await connected()
    assert tail.task is not None
    await socket.disconnect()
    assert tail.task is None


async def test_the_tail_survives_a_database_that_fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = tail_module.events_after, iter([True])

    def flaky(*arguments: Any) -> Any:
        if next(failures, False):
            raise OSError("gone for a moment")
        return real(*arguments)

    monkeypatch.setattr(tail_module, "events_after", flaky)
    socket = await connected()
    await sync_to_async(publish_many)(0, 2)
    assert len(await receive(socket, 2)) == 2
    await socket.disconnect()


async def test_a_replay_survives_a_database_that_fails_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "REPLAY_PAGE", 3)
    real, calls = tail_module.stored_between, iter(range(100))

    def flaky(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise OSError("gone for a moment")
        return real(*arguments)

    monkeypatch.setattr(tail_module, "stored_between", flaky)
    await sync_to_async(publish_many)(0, 9)
    socket = await connected("?since=0")
    assert [frame["data"]["step"] for frame in await receive(socket, 9)] == list(range(9))
    await socket.disconnect()


def test_a_backlog_keeps_only_the_newest_progress_of_a_run_and_everything_else() -> None:
    subscription = Subscription(frozenset())
    subscription.offer(message(1, "training_status"))
    for number in range(2, 1000):
        subscription.offer(message(number))
    subscription.offer(message(1000, "training_complete"))
    kept = list(subscription.queue)
    assert len(kept) <= tail_module.COALESCE_ABOVE + 2
    assert (kept[0]["type"], kept[-2]["id"], kept[-1]["type"]) == ("training_status", 999, "training_complete")
    assert not subscription.overflowed


def test_progress_of_another_run_is_not_superseded() -> None:
    subscription = Subscription(frozenset())
    subscription.offer(message(1, run_id=7))
    for number in range(2, 500):
        subscription.offer(message(number, run_id=8))
    assert any(kept["data"]["run_id"] == 7 for kept in subscription.queue)  # type: ignore[typeddict-item]


async def test_a_client_that_does_not_read_is_closed_and_told_to_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    subscription = Subscription(frozenset())
    for number in range(tail_module.QUEUE_LIMIT + 1):
        subscription.offer(message(number, "training_status"))
    assert subscription.overflowed
    assert len(subscription.queue) == tail_module.QUEUE_LIMIT


def test_the_query_names_types_once() -> None:
    assert parse_query(b"types=gpu_stats,eval_error&since=5") == (5, frozenset({"gpu_stats", "eval_error"}))
    assert parse_query(b"") == (None, frozenset())


def test_every_event_of_the_users_document_exists() -> None:
    documented = {
        "gpu_stats",
        "training_status",
        "training_progress",
        "training_complete",
        "training_error",
        "eval_progress",
        "eval_complete",
        "eval_error",
    }
    assert documented <= set(EVENT_TYPES)


def test_old_events_are_pruned_and_new_ones_kept() -> None:
    from datetime import timedelta

    from django.utils import timezone

    progress(1)
    progress(2)
    first = Event.objects.order_by("id").first()
    assert first
    Event.objects.filter(pk=first.pk).update(created_at=timezone.now() - timedelta(days=40))
    assert prune_events() == 1
    assert Event.objects.count() == 1
