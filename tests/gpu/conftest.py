"""The engine tests' rows, for the tests that need a CUDA device."""

from tests.engine.conftest import digit_rows

__all__ = ["digit_rows"]
