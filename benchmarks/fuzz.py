"""Fuzzing, the long form of tests/fuzz: requests made from the schema, orders of users and queue, hostile input."""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.instance import print_table
from tests.fuzz.campaign import campaign_settings, run_campaign
from tests.fuzz.orders import Orders
from tests.fuzz.world import Application, closed_world, populate, stub_model_server

SECONDS = int(os.environ.get("FUZZ_SECONDS", "300"))
ORDERS = int(os.environ.get("FUZZ_ORDERS", "60"))
STEPS = 50
FACTOR = os.environ.get("FUZZ_FACTOR", "8")
SEED = int(os.environ.get("FUZZ_SEED", "20261122"))
INPUTS = ("tests/fuzz/test_requests.py", "tests/fuzz/test_files.py", "tests/core/test_addresses.py")
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """One way of fuzzing: how many cases there were, and how many of them were answered or ended badly."""

    name: str
    cases: int
    server_errors: int
    faults: int
    seconds: float

    def row(self) -> tuple[str, str, str]:
        measured = (
            f"{self.cases} cases in {self.seconds:.0f} s: {self.server_errors} server errors, {self.faults} faults"
        )
        return self.name, measured, "0, 0"


def main() -> None:
    settings.BACKEND = "fake"
    call_command("migrate", verbosity=0)
    parts = [fuzz_schema(), fuzz_orders(), fuzz_inputs()]
    print_table("Fuzzing", [part.row() for part in parts])
    if any(part.server_errors or part.faults for part in parts):
        sys.exit(1)


def fuzz_schema() -> Part:
    """Every phase of schemathesis until the time is over."""
    began, folder = time.monotonic(), Path(settings.DATA_DIR)
    with stub_model_server(folder), closed_world():
        populate(folder)
        campaign = run_campaign(Application(), campaign_settings(seed=SEED, seconds=SECONDS))
    call_command("flush", verbosity=0, interactive=False, inhibit_post_migrate=True)
    for name, told in campaign.failures.items():
        print(f"{name}\n{told}\n")
    print(f"statuses {dict(sorted(campaign.statuses.items()))}, cases {dict(campaign.by_phase)}, jobs {campaign.jobs}")
    errors = sum(count for status, count in campaign.statuses.items() if status >= 500)
    faults = len(campaign.failures) + len(campaign.errors)
    return Part("requests made from the schema", campaign.calls, errors, faults, time.monotonic() - began)


def fuzz_orders() -> Part:
    """Histories of STEPS steps each; a broken invariant or a server error ends the benchmark with its history."""
    began = time.monotonic()
    long = hypothesis_settings(
        max_examples=ORDERS,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Orders, settings=long)
    print(f"orders: {dict(sorted(Orders.done.items()))}")
    return Part(f"orders of users and queue, {ORDERS} histories", Orders.steps, 0, 0, time.monotonic() - began)


def fuzz_inputs() -> Part:
    """Hypothesis over bodies, parameters, headers, files and addresses, with many examples each."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile", "long"]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [*command, "--hypothesis-show-statistics", "--basetemp", f"{elsewhere}/tests", *INPUTS],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "FUZZ_FACTOR": FACTOR, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        )
    cases = sum(int(found) for found in re.findall(r"- (\d+) passing,", done.stdout))
    if done.returncode:
        print(done.stdout)
    return Part("bodies, parameters, headers, files, addresses", cases, 0, done.returncode, time.monotonic() - began)


if __name__ == "__main__":
    main()
