"""The clocks that tests set by hand."""

from tests.core.clocks import ticks, wall_clock

__all__ = ["ticks", "wall_clock"]
