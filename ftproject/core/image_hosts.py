"""Manners towards image hosts within one run: no host gets more than its share, and one that is gone is left alone."""

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ftproject.core.vetted_network import FetchError

GIVE_UP_AFTER = 5


class HostRecord:
    """Which hosts ("name:port") could not be connected to, for one run."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.failures: Counter[str] = Counter()
        self.given_up: set[str] = set()

    def check(self, host: str) -> None:
        """Raises FetchError when the host was given up; the next run tries it again."""
        if host in self.given_up:
            message = f"{host} could not be connected to {GIVE_UP_AFTER} times in a row and was left alone after that"
            raise FetchError("image_host_given_up", message)

    def note_failure(self, host: str) -> None:
        """Counts a fetch that did not even connect, all its attempts together."""
        with self.lock:
            self.failures[host] += 1
            if self.failures[host] >= GIVE_UP_AFTER:
                self.given_up.add(host)

    def note_answer(self, host: str) -> None:
        if self.failures[host]:
            with self.lock:
                del self.failures[host]


Task = tuple[Future[Any], Callable[[], Any]]


class HostLanes:
    """A thread pool with a limit per host; work that waits for its host's turn occupies no thread."""

    def __init__(self, threads: int, per_host: int) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="image")
        self.per_host = per_host
        self.lock = threading.Lock()
        self.running: Counter[str] = Counter()
        self.waiting: dict[str, deque[Task]] = {}
        self.closed = False

    def submit(self, host: str, call: Callable[[], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        with self.lock:
            if self.running[host] >= self.per_host:
                self.waiting.setdefault(host, deque()).append((future, call))
            else:
                self.running[host] += 1
                self.pool.submit(self._work, host, (future, call))
        return future

    def close(self) -> None:
        """Forgets what waits; what runs ends by itself."""
        with self.lock:
            self.closed = True
            self.waiting.clear()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, host: str, task: Task) -> None:
        future, call = task
        try:
            future.set_result(call())
        except BaseException as exc:
            future.set_exception(exc)
        finally:
            self._leave(host)

    def _leave(self, host: str) -> None:
        """The next of this host goes to the end of the pool's own queue, so that hosts take turns."""
        with self.lock:
            queue = self.waiting.get(host)
            if queue and not self.closed:
                self.pool.submit(self._work, host, queue.popleft())
                return
            self.waiting.pop(host, None)
            self.running[host] -= 1
            if not self.running[host]:
                del self.running[host]
