"""The clocks, for every test of the core."""

from tests.core.clocks import ticks, wall_clock

__all__ = ["ticks", "wall_clock"]
