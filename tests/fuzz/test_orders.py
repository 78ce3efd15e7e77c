"""Any order of start, stop, cancel, delete, resume, evaluate, compare, infer, unload leaves everything consistent."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.fuzz.orders import Orders


@pytest.mark.slow
def test_no_order_of_users_and_queue_breaks_an_invariant(transactional_db: None) -> None:
    """The bounded form of `python -m benchmarks fuzz`."""
    bounded = settings(
        max_examples=6,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),  # shrinking takes minutes; `python -m benchmarks fuzz` does it
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Orders, settings=bounded)
    assert Orders.done["training worked"] + Orders.done["evaluation worked"] > 0
