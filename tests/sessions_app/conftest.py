"""Sessions are tested in the small world of the training tests."""

from tests.training_app.conftest import api, dataset

__all__ = ["api", "dataset"]
