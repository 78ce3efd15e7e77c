"""Requests made from the schema, valid and not: no server error, every answer as documented, every error one shape."""

from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.campaign import campaign_settings, run_campaign
from tests.fuzz.world import Application, closed_world, populate, stub_model_server

SECONDS = 25


@pytest.mark.slow
def test_no_request_made_from_the_schema_finds_a_fault(data_dir: Path, transactional_db: None, settings: Any) -> None:
    """The bounded form of `python -m benchmarks fuzz`."""
    settings.BACKEND = "fake"
    with stub_model_server(data_dir), closed_world():
        populate(data_dir)
        campaign = run_campaign(Application(), campaign_settings(seed=20261122, seconds=SECONDS, examples=4))
    assert campaign.failures == {}
    assert campaign.errors == []
    assert campaign.calls > 300
    assert max(campaign.statuses) < 500
    assert set(campaign.by_phase) == {"examples", "coverage", "fuzzing", "stateful"}
