"""The two clocks of a test: one that only goes on, and the wall clock, which anybody may set."""

from datetime import datetime, timedelta

import pytest
from django.utils import timezone

from ftproject.core import silence, tasks


class Ticks:
    """The monotonic clock of this process, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


class WallClock:
    """The real time and what it was set by."""

    def __init__(self, ticks: Ticks) -> None:
        self.ticks, self.began, self.at = ticks, datetime.now(tz=timezone.get_current_timezone()), ticks.now
        self.set_by = timedelta(0)

    def __call__(self) -> datetime:
        return self.began + timedelta(seconds=self.ticks.now - self.at) + self.set_by


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr(silence, "clock", ticks)
    monkeypatch.setattr(tasks, "clock", ticks)
    return ticks


@pytest.fixture
def wall_clock(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock(ticks)
    monkeypatch.setattr(timezone, "now", clock)
    return clock
