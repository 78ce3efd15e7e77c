"""Requests made from the schema, valid and not: no server error, every answer as documented, every error one shape.

`python -m benchmarks fuzz` is the long form. Here sequences and random cases are bounded by their number, and the
enumeration of edge cases (2,200 of them) by time, so that it ends on a busy machine too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.campaign import Campaign, campaign_settings, run_campaign
from tests.fuzz.world import Application, closed_world, populate, stub_model_server

SEED = 20261122
ENUMERATION_SECONDS = 15


@pytest.fixture
def application(data_dir: Path, transactional_db: None, settings: Any) -> Iterator[Application]:
    settings.BACKEND = "fake"
    with stub_model_server(data_dir), closed_world():
        populate(data_dir)
        yield Application()


def assert_sound(campaign: Campaign) -> None:
    assert campaign.failures == {}
    assert campaign.errors == []
    assert max(campaign.statuses) < 500


@pytest.mark.slow
def test_no_random_request_and_no_sequence_of_them_finds_a_fault(application: Application) -> None:
    settings = campaign_settings(seed=SEED, examples=2, phases=("examples", "fuzzing", "stateful"))
    campaign = run_campaign(application, settings)
    assert_sound(campaign)
    assert campaign.by_phase["fuzzing"] > 100
    assert campaign.by_phase["stateful"] > 0


@pytest.mark.slow
def test_no_edge_case_of_a_parameter_finds_a_fault(application: Application) -> None:
    campaign = run_campaign(
        application, campaign_settings(seed=SEED, seconds=ENUMERATION_SECONDS, phases=("coverage",))
    )
    assert_sound(campaign)
    assert campaign.by_phase["coverage"] > 50
