"""Whether a queue worker is seen: through the pulse that a real cluster leaves in the shared cache."""

from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django_q.conf import Conf
from django_q.signing import SignedPackage
from django_q.status import Stat, Status

from ftproject.core.queue import queue_worker_seen


def beat(status: Any, workers: list[int], seconds: float = 3, pid: int = 1) -> None:
    pulse = Status(pid=pid, cluster_id="c")  # what a cluster writes; Stat itself wants a running sentinel
    pulse.status, pulse.workers = status, workers
    caches["queue"].set(Conf.Q_STAT, [Stat.get_key("c")], None)
    caches["queue"].set(Stat.get_key("c"), SignedPackage.dumps(pulse, True), seconds)


@pytest.fixture(autouse=True)
def shared_cache(settings: Any, tmp_path: Path) -> None:
    file_cache = "django.core.cache.backends.filebased.FileBasedCache"
    settings.CACHES = {**settings.CACHES, "queue": {"BACKEND": file_cache, "LOCATION": tmp_path}}


def test_no_pulse_means_no_worker() -> None:
    assert queue_worker_seen() is False


@pytest.mark.parametrize("status", [Conf.STARTING, Conf.IDLE, Conf.WORKING, Conf.STOPPING])
def test_a_cluster_with_a_worker_is_seen(status: Any) -> None:
    beat(status, [2])
    assert queue_worker_seen() is True


def test_a_cluster_that_has_stopped_or_lost_its_worker_is_not() -> None:
    beat(Conf.STOPPED, [2])
    assert queue_worker_seen() is False
    beat(Conf.IDLE, [])
    assert queue_worker_seen() is False


def test_a_pulse_that_ran_out_is_not() -> None:
    beat(Conf.IDLE, [2], seconds=-1)
    assert queue_worker_seen() is False


def test_a_broken_pulse_is_no_error(tmp_path: Path) -> None:
    beat(Conf.IDLE, [2])
    for path in tmp_path.glob("*.djcache"):
        path.write_bytes(b"not a cache entry")
    assert queue_worker_seen() is False


def test_a_pulse_signed_by_another_server_is_not_believed() -> None:
    beat(Conf.IDLE, [2])
    caches["queue"].set(Stat.get_key("c"), "forged:pulse", 3)
    assert queue_worker_seen() is False


def test_a_cluster_that_is_gone_is_not_seen_however_long_its_pulse_stays() -> None:
    beat(Conf.IDLE, [2], seconds=3600, pid=2**22 + 1)  # no process has this number
    assert queue_worker_seen() is False
