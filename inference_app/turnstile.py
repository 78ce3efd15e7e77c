"""Lets one thread at a time use the model server, in the order they came."""

import threading
import time
from collections import deque


class Turnstile:
    """A fair lock: threading.Lock hands itself to anybody, so a busy hour could keep one request waiting for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._held = False

    def take(self, timeout: float, *, first: bool = False) -> bool:
        """Waits for the turn, at most `timeout` seconds; `first` goes before all that wait. False: not taken."""
        ticket, until = object(), time.monotonic() + timeout
        with self._changed:
            if first:
                self._line.appendleft(ticket)
            else:
                self._line.append(ticket)
            while self._held or self._line[0] is not ticket:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    self._line.remove(ticket)
                    self._changed.notify_all()
                    return False
            self._line.popleft()
            self._held = True
            return True

    def __len__(self) -> int:
        """How many wait."""
        return len(self._line)

    @property
    def held(self) -> bool:
        return self._held

    def give(self) -> None:
        with self._changed:
            self._held = False
            self._changed.notify_all()
