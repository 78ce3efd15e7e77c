"""Lets many threads use the model server at once, or one alone change it, in the order they came."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

GivenUp = Callable[[], bool]
LOOK_SECONDS = 0.25  # between two looks whether who waits still wants to come in


def never() -> bool:
    return False


@dataclass(eq=False)
class Ticket:
    shared: bool


class Turnstile:
    """A fair lock for users and changers: who waits to change it goes before users that come later.

    Python's locks hand themselves to anybody, so a busy hour could keep a run from the device for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[Ticket] = deque()
        self._users = 0
        self._taken = False

    def enter(self, timeout: float, given_up: GivenUp = never) -> bool:
        """Comes in as one user of many; False when it took longer than `timeout` seconds, or once `given_up`."""
        return self._wait(Ticket(shared=True), timeout, first=False, given_up=given_up)

    def leave(self) -> int:
        """A user goes; returns how many are left."""
        with self._changed:
            self._users -= 1
            self._changed.notify_all()
            return self._users

    def take(self, timeout: float, given_up: GivenUp = never, *, first: bool = False) -> bool:
        """Waits until nobody else is in, as long as `enter` does; `first` goes before all that wait."""
        return self._wait(Ticket(shared=False), timeout, first=first, given_up=given_up)

    def give(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()

    def _wait(self, ticket: Ticket, timeout: float, *, first: bool, given_up: GivenUp) -> bool:
        until = time.monotonic() + timeout
        with self._changed:
            if first:
                self._line.appendleft(ticket)
            else:
                self._line.append(ticket)
            while not self._may_enter(ticket):
                left = until - time.monotonic()
                if left <= 0 or given_up():
                    self._line.remove(ticket)
                    self._changed.notify_all()
                    return False
                self._changed.wait(min(left, LOOK_SECONDS))
            self._line.popleft()
            self._users += ticket.shared
            self._taken = not ticket.shared
            self._changed.notify_all()  # the next in line may be a user too
            return True

    def _may_enter(self, ticket: Ticket) -> bool:
        free = not self._taken and (ticket.shared or self._users == 0)
        return free and self._line[0] is ticket

    def __len__(self) -> int:
        """How many wait."""
        return len(self._line)

    @property
    def held(self) -> bool:
        """Whether anybody is in."""
        return self._taken or self._users > 0
