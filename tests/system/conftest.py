"""The clocks that tests set by hand, and the training tests' small world."""

from tests.core.clocks import ticks, wall_clock
from tests.training_app.conftest import api, dataset, dead

__all__ = ["api", "dataset", "dead", "ticks", "wall_clock"]
