"""Whether somebody works on the gpu queue right now."""

import logging
import socket
from collections.abc import Iterator
from typing import Any

import psutil

logger = logging.getLogger(__name__)


def queue_worker_seen() -> bool:
    """True while a gpu cluster's pulse (written every half second, kept for 3 s) stands in the shared cache.

    A cluster that is stopping still counts: it may be supervising a run. Never raises, because it answers for health.
    """
    try:
        return bool(living_clusters())
    except Exception:  # a half-written cache file, a pulse written by another version
        logger.warning("the queue's pulse could not be read", exc_info=True)
        return False


def living_clusters() -> list[Any]:
    """The clusters whose pulse is seen; more than one is a mistake."""
    from django_q.conf import Conf

    pulses = [pulse for pulse in read_pulses() if pulse.workers and str(pulse.status) != str(Conf.STOPPED)]
    return [pulse for pulse in pulses if cluster_lives(pulse)]


def cluster_lives(pulse: Any) -> bool:
    """False for a cluster of this host that is gone: its last pulse stays for hours when the clock was set back."""
    return bool(pulse.host != socket.gethostname() or psutil.pid_exists(pulse.pid))


def read_pulses() -> Iterator[Any]:
    """The living clusters' own words; django-q2's `Stat.get_all` asks the database and writes to the cache for it."""
    from django_q.brokers import Broker
    from django_q.conf import Conf
    from django_q.signing import BadSignature, SignedPackage

    cache = Broker.get_cache()
    for pack in cache.get_many(cache.get(Conf.Q_STAT) or []).values():
        try:
            yield SignedPackage.loads(pack)
        except BadSignature:  # another installation's
            continue
