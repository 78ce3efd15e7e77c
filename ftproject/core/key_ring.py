"""The gate's way to the keys: judged in threads of its own, wrong ones counted by peer."""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address, ip_address
from math import ceil

from django.db import Error, close_old_connections

from ftproject.core.api_keys import digest_of, judge_api_key, note_use, use_is_noted
from ftproject.core.errors import BusyError, UnauthorizedError, UnavailableError
from ftproject.core.models import ApiKey

logger = logging.getLogger(__name__)

WRONG_KEYS = 20
WINDOW_SECONDS = 60.0
REMEMBERED_PEERS = 4096
REMEMBERED_KEYS = 1024


class WrongKeyThrottle:
    """At most 20 wrong keys a minute from one peer; then only keys that have passed here before are looked at.

    256 random bits cannot be guessed; this spares the database and the log. Behind a proxy all clients are one peer,
    so a stranger's wrong keys must not shut out those who already come with right ones.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self.passed: OrderedDict[str, None] = OrderedDict()

    def wait_seconds(self, peer: str, key: str) -> int | None:
        """How long this key has to wait; None: it may be looked at."""
        times = self.wrong.get(network_of(peer))
        if times is None or digest_of(key) in self.passed:
            return None
        left = times[0] + WINDOW_SECONDS - self.clock()
        return ceil(left) if len(times) == WRONG_KEYS and left > 0 else None

    def count_wrong(self, peer: str) -> None:
        network = network_of(peer)
        self.wrong.setdefault(network, deque(maxlen=WRONG_KEYS)).append(self.clock())
        self.wrong.move_to_end(network)
        forget_oldest(self.wrong, REMEMBERED_PEERS)

    def note_passed(self, key: str) -> None:
        self.passed[digest_of(key)] = None
        self.passed.move_to_end(digest_of(key))
        forget_oldest(self.passed, REMEMBERED_KEYS)


def forget_oldest(
    table: OrderedDict[str, object] | OrderedDict[str, deque[float]] | OrderedDict[str, None], limit: int
) -> None:
    while len(table) > limit:
        table.popitem(last=False)


def network_of(peer: str) -> str:
    """The peer's address; of IPv6 the /64, which one machine has for itself."""
    try:
        address = ip_address(peer)
    except ValueError:
        return peer
    return address.exploded[:19] if isinstance(address, IPv6Address) and not address.ipv4_mapped else peer


class KeyRing:
    """Two threads that keep their database connections: the event loop waits for nothing."""

    def __init__(self, throttle: WrongKeyThrottle | None = None) -> None:
        self.throttle = throttle or WrongKeyThrottle()
        self.judges = ThreadPoolExecutor(max_workers=2, thread_name_prefix="api-keys")
        self.noting: set[int] = set()
        self.notes = ThreadPoolExecutor(max_workers=1, thread_name_prefix="api-key-use")

    async def judge(self, key: str, peer: str) -> ApiKey:
        """The row of a good key; else UnauthorizedError, BusyError (too many wrong ones) or UnavailableError."""
        wait = self.throttle.wait_seconds(peer, key)
        if wait is not None:
            raise too_many_wrong_keys(wait)
        try:
            row = await asyncio.get_running_loop().run_in_executor(self.judges, look_up, key)
        except UnauthorizedError:
            self.throttle.count_wrong(peer)
            raise
        self.throttle.note_passed(key)
        self.note_use_later(row)
        return row

    def note_use_later(self, key: ApiKey) -> None:
        """At most one note of a key waits: while the database is locked a busy client must not pile them up."""
        if use_is_noted(key) or key.pk in self.noting:
            return
        self.noting.add(key.pk)
        self.notes.submit(note_in_thread, key).add_done_callback(lambda _: self.noting.discard(key.pk))


def look_up(key: str) -> ApiKey:
    close_old_connections()
    try:
        return judge_api_key(key)
    except Error as error:
        logger.warning("a key could not be judged: %s", error)
        hint = "Try again in a moment."
        raise UnavailableError(
            "The database does not answer.", code="database_unavailable", hint=hint, headers={"Retry-After": "1"}
        ) from None


def note_in_thread(key: ApiKey) -> None:
    close_old_connections()
    note_use(key)


def too_many_wrong_keys(wait: int) -> BusyError:
    return BusyError(
        "Too many wrong API keys came from this address.",
        code="too_many_wrong_keys",
        hint=f"Wait {wait} s, then send a key that `manage.py api_key list` shows as active.",
        headers={"Retry-After": str(wait)},
    )
