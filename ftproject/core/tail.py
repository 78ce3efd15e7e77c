"""The tailer: one task of the web process reads new events every 150 ms and hands them to every open socket.

No channel layer carries these: the measured ones lost, reordered or repeated events (docs/decisions/002).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from django.db import close_old_connections
from django.db.models import Max
from django.utils import timezone

from ftproject.core.events import COALESCED, EventData, EventMessage, EventType, event_message
from ftproject.core.models import Event

T = TypeVar("T")
logger = logging.getLogger(__name__)

POLL_SECONDS = 0.15
BATCH = 2000
# A long replay goes page by page: the live sockets read through the same thread in between.
REPLAY_PAGE = 500
# Above this backlog superseded progress is skipped; at the end of the queue the client is closed and replays.
COALESCE_ABOVE = 200
QUEUE_LIMIT = 2000


class Subscription:
    """The bounded queue of one socket."""

    def __init__(self, types: frozenset[str]) -> None:
        self.types = types
        self.queue: deque[EventMessage] = deque()
        self.ready = asyncio.Event()
        self.overflowed = False

    def offer(self, message: EventMessage) -> None:
        if self.overflowed or (self.types and message["type"] not in self.types):
            return
        if len(self.queue) >= COALESCE_ABOVE and message["type"] in COALESCED:
            self.drop_superseded(message)
        if len(self.queue) >= QUEUE_LIMIT:
            self.overflowed = True
        else:
            self.queue.append(message)
        self.ready.set()

    def drop_superseded(self, newer: EventMessage) -> None:
        """Forgets queued progress that `newer` replaces; all other events keep their place."""
        run = newer["data"].get("run_id")
        self.queue = deque(
            old for old in self.queue if old["type"] != newer["type"] or old["data"].get("run_id") != run
        )

    async def take(self) -> list[EventMessage]:
        """All messages that wait, in order; waits for the first one."""
        await self.ready.wait()
        self.ready.clear()
        taken = list(self.queue)
        self.queue.clear()
        return taken


class EventTail:
    """Started by the first socket, ended by the last; the thread keeps its one database connection."""

    def __init__(self) -> None:
        self.subscriptions: set[Subscription] = set()
        self.task: asyncio.Task[None] | None = None
        self.started = asyncio.Event()
        self.last_id = 0
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="event-tail")

    async def subscribe(self, types: frozenset[str]) -> Subscription:
        """From now on every new event of these types (none named: all) reaches the subscription."""
        subscription = Subscription(types)
        self.subscriptions.add(subscription)
        if self.task is None or self.task.done():
            # Nothing is awaited between the check and the task: sockets that open together must share one follower.
            self.started = asyncio.Event()
            self.task = asyncio.create_task(self.follow())
        try:
            await self.started.wait()
        except BaseException:
            self.unsubscribe(subscription)
            raise
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self.subscriptions.discard(subscription)
        if not self.subscriptions and self.task is not None:
            self.task.cancel()
            self.task = None

    def broadcast(self, event_type: EventType, data: EventData) -> None:
        """Sends what is not stored (gpu_stats); it carries the newest stored id, so `since` stays true."""
        timestamp = timezone.now().isoformat()
        self.deliver([{"type": event_type, "id": self.last_id, "timestamp": timestamp, "data": data}])

    def deliver(self, messages: Sequence[EventMessage]) -> None:
        for message in messages:
            for subscription in self.subscriptions:
                subscription.offer(message)

    async def follow(self) -> None:
        await self.find_place()
        self.started.set()
        while True:
            try:
                self.deliver(await self.read_new())
            except Exception:
                logger.exception("events could not be read, trying again")
            await asyncio.sleep(POLL_SECONDS)

    async def find_place(self) -> None:
        """Starts behind the newest stored event; what is older is for replays."""
        self.last_id = await self.read_patiently(newest_id)

    async def read_new(self) -> list[EventMessage]:
        messages = await self.read(events_after, self.last_id)
        if messages:
            self.last_id = messages[-1]["id"]
        return messages

    async def read(self, query: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.executor, query, *arguments)

    async def read_patiently(self, query: Callable[..., T], *arguments: object) -> T:
        while True:
            try:
                return await self.read(query, *arguments)
            except Exception:
                logger.exception("events could not be read, trying again")
                await asyncio.sleep(POLL_SECONDS)

    async def replay(self, since: int, until: int, types: frozenset[str]) -> list[EventMessage]:
        """The next page of stored events with since < id <= until, oldest first; empty at the end."""
        return await self.read_patiently(stored_between, since, until, types)


def newest_id() -> int:
    close_old_connections()
    return Event.objects.aggregate(newest=Max("id"))["newest"] or 0


def events_after(last: int) -> list[EventMessage]:
    """What was stored since; no lower id can be committed any more (docs/decisions/015)."""
    close_old_connections()
    return [event_message(row) for row in Event.objects.filter(id__gt=last).order_by("id")[:BATCH]]


def stored_between(since: int, until: int, types: frozenset[str]) -> list[EventMessage]:
    close_old_connections()
    rows = Event.objects.filter(id__gt=since, id__lte=until).order_by("id")
    if types:
        rows = rows.filter(type__in=types)
    return [event_message(row) for row in rows[:REPLAY_PAGE]]


tail = EventTail()
