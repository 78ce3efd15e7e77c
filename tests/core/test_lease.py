"""The GPU lease: one holder, taken over only from the dead."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from ftproject.core import lease
from ftproject.core.models import GpuLease
from ftproject.core.silence import CONFIRM_SECONDS
from tests.core.clocks import Ticks

pytestmark = pytest.mark.django_db


def test_a_free_device_is_leased_to_the_first_who_asks() -> None:
    assert lease.acquire_lease("training:1")
    assert lease.acquire_lease("evaluation:2") is None
    assert lease.lease_holder() == "training:1"


def test_the_lease_is_free_again_after_release() -> None:
    token = lease.acquire_lease("training:1")
    assert token
    assert lease.release_lease(token)
    assert lease.lease_holder() == ""
    assert lease.acquire_lease("evaluation:2")


def test_a_token_that_was_lost_neither_beats_nor_releases(ticks: Ticks) -> None:
    token = lease.acquire_lease("training:1")
    assert token
    GpuLease.objects.update(heartbeat_at=timezone.now() - lease.LEASE_TTL - timedelta(seconds=1))
    assert lease.acquire_lease("training:2") is None, "the clock may have been set"
    ticks.pass_by(CONFIRM_SECONDS)
    assert lease.acquire_lease("training:2")
    assert not lease.beat_lease(token)
    assert not lease.release_lease(token)
    assert lease.lease_holder() == "training:2"


def test_a_beating_holder_keeps_the_lease() -> None:
    token = lease.acquire_lease("inference:1")
    assert token
    GpuLease.objects.update(heartbeat_at=timezone.now() - lease.LEASE_TTL + timedelta(seconds=2))
    assert lease.beat_lease(token)
    assert lease.acquire_lease("training:1") is None


def test_a_holder_learns_that_somebody_waits() -> None:
    token = lease.acquire_lease("inference:1")
    assert token
    assert not lease.lease_wanted(token)
    lease.want_lease("training:7")
    assert lease.lease_wanted(token)


def test_the_wish_ends_with_the_next_holder() -> None:
    token = lease.acquire_lease("inference:1")
    lease.want_lease("training:7")
    assert token
    lease.release_lease(token)
    taken = lease.acquire_lease("training:7")
    assert taken
    assert not lease.lease_wanted(taken)


def test_the_lease_of_a_dead_holder_can_be_freed_by_name() -> None:
    lease.acquire_lease("training:1")
    assert not lease.release_holder("training:2")
    assert lease.release_holder("training:1")
    assert lease.lease_holder() == ""


def test_of_two_that_found_the_device_free_one_gets_it() -> None:
    faster: list[str | None] = []

    def other(execute: Any, sql: str, *call: Any) -> Any:
        if sql.startswith("UPDATE") and not faster:
            faster.append("asks now")
            faster.append(lease.acquire_lease("training:2"))
        return execute(sql, *call)

    lease.acquire_lease("training:0")
    lease.release_holder("training:0")
    with connection.execute_wrapper(other):
        assert lease.acquire_lease("training:1") is None
    assert faster[1]
    assert lease.lease_holder() == "training:2"
