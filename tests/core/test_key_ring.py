"""Keys as the gate asks for them: in threads, with wrong ones counted, and a database that does not answer."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections

from ftproject.core import key_ring
from ftproject.core.api_keys import create_api_key, revoke_api_key
from ftproject.core.errors import BusyError, UnauthorizedError, UnavailableError
from ftproject.core.key_ring import REMEMBERED_PEERS, WRONG_KEYS, KeyRing, WrongKeyThrottle, look_up, network_of
from ftproject.core.models import ApiKey, KeyScope


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> WrongKeyThrottle:
    return WrongKeyThrottle(clock)


def exhaust(throttle: WrongKeyThrottle, peer: str) -> None:
    for _ in range(WRONG_KEYS):
        assert throttle.wait_seconds(peer, "k") is None
        throttle.count_wrong(peer)


def test_the_twenty_first_wrong_key_of_a_minute_waits(throttle: WrongKeyThrottle, clock: Clock) -> None:
    exhaust(throttle, "203.0.113.9")
    assert throttle.wait_seconds("203.0.113.9", "another") == 60
    assert throttle.wait_seconds("203.0.113.10", "another") is None
    clock.now += 59
    assert throttle.wait_seconds("203.0.113.9", "another") == 1
    clock.now += 1
    assert throttle.wait_seconds("203.0.113.9", "another") is None


def test_a_key_that_has_passed_is_not_shut_out_by_a_strangers_wrong_ones(throttle: WrongKeyThrottle) -> None:
    throttle.note_passed("good")
    exhaust(throttle, "127.0.0.1")
    assert throttle.wait_seconds("127.0.0.1", "good") is None
    assert throttle.wait_seconds("127.0.0.1", "guess") == 60


def test_a_machine_has_one_count_for_all_its_ipv6_addresses(throttle: WrongKeyThrottle) -> None:
    exhaust(throttle, "2001:db8:1:2::1")
    assert throttle.wait_seconds("2001:db8:1:2:ffff::9", "k") == 60
    assert throttle.wait_seconds("2001:db8:1:3::1", "k") is None
    assert network_of("::ffff:10.0.0.1") != network_of("::ffff:10.0.0.2")


def test_the_table_of_peers_does_not_grow_for_ever(throttle: WrongKeyThrottle) -> None:
    for number in range(REMEMBERED_PEERS + 50):
        throttle.count_wrong(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}")
    assert len(throttle.wrong) == REMEMBERED_PEERS


@pytest.fixture
def ring() -> Iterator[KeyRing]:
    """A ring whose threads leave no connection behind."""
    ring = KeyRing()
    yield ring
    for threads in (ring.judges, ring.notes):
        threads.submit(connections.close_all).result()
        threads.shutdown(wait=True)


@pytest.mark.django_db(transaction=True)
async def test_the_ring_knows_a_key_notes_its_use_and_forgets_it_when_it_is_revoked(ring: KeyRing) -> None:
    row, key = await sync_to_async(create_api_key)(name="a", scope=KeyScope.RUN)
    assert await ring.judge(key, "203.0.113.9") == row
    ring.notes.submit(lambda: None).result()
    assert (await ApiKey.objects.aget()).last_used_at is not None
    await sync_to_async(revoke_api_key)(prefix=row.prefix)
    with pytest.raises(UnauthorizedError):
        await ring.judge(key, "203.0.113.9")


@pytest.mark.django_db(transaction=True)
async def test_after_too_many_wrong_keys_not_even_a_right_one_is_looked_at(ring: KeyRing) -> None:
    _, key = await sync_to_async(create_api_key)(name="a", scope=KeyScope.RUN)
    for _ in range(WRONG_KEYS):
        with pytest.raises(UnauthorizedError):
            await ring.judge("qwen3vl_wrong", "203.0.113.9")
    with pytest.raises(BusyError) as refusal:
        await ring.judge(key, "203.0.113.9")
    assert (refusal.value.code, refusal.value.headers) == ("too_many_wrong_keys", {"Retry-After": "60"})
    assert (await ring.judge(key, "203.0.113.10")).name == "a"


def test_while_the_database_is_locked_notes_of_a_key_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    locked, noted = threading.Event(), []

    def wait_for_the_lock(key: ApiKey) -> None:
        noted.append(key.pk)
        locked.wait()

    monkeypatch.setattr(key_ring, "note_in_thread", wait_for_the_lock)
    ring = KeyRing()
    for number in range(50):
        ring.note_use_later(ApiKey(pk=1 + number % 2))
    locked.set()
    ring.notes.shutdown(wait=True)
    assert noted == [1, 2]
    assert ring.noting == set()


def test_a_database_that_does_not_answer_is_503_and_no_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OperationalError("database is locked")

    monkeypatch.setattr(key_ring, "close_old_connections", lambda: None)
    monkeypatch.setattr(ApiKey.objects, "filter", fail)
    with pytest.raises(UnavailableError) as refusal:
        look_up("qwen3vl_00000000_" + "x" * 43)
    assert (refusal.value.code, refusal.value.headers) == ("database_unavailable", {"Retry-After": "1"})
