"""The whole matrix of the gate: all combinations of headers on a read and a write; every route and method; `/ws`."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from django.core.management import call_command
from django.db import transaction

from benchmarks.instance import print_table

SAMPLE = 100
# 1.6 million combinations an address; 5 has no factor in common with the 11 kinds of keys, so that all of them come.
STEP = 5


def main() -> None:
    from tests.system.gate_cases import METHODS, every_header, routes, some_headers
    from tests.system.gate_probe import Probe

    call_command("migrate", verbosity=0)
    with transaction.atomic():
        probe = Probe()
        every = routes()
        parts: dict[str, Iterable[Any]] = {
            f"{method} {path}, each {STEP}th combination": islice(every_header(method, path), 0, None, STEP)
            for method, path in (("GET", "/api/system/health"), ("POST", "/api/training/start"))
        }
        parts |= {
            f"{len(every)} addresses x {len(METHODS)} methods x {SAMPLE}": (
                case
                for route in every
                for method in METHODS
                for case in some_headers(SAMPLE, method, route.path, mapped=method in route.methods)
            ),
            "/ws, a sample": some_headers(20_000, "GET", "/ws", kind="websocket"),
        }
        print_table("The gate against its oracle", [row_of(name, cases, probe) for name, cases in parts.items()])
        transaction.set_rollback(True)


def row_of(name: str, cases: Iterable[Any], probe: Any) -> tuple[str, str, str]:
    started, tried = time.monotonic(), Counter(verdicts(cases, probe))
    wrong = sum(count for verdict, count in tried.items() if verdict.startswith("WRONG"))
    told = ", ".join(f"{verdict} {count:,}" for verdict, count in tried.most_common())
    seconds = f"{time.monotonic() - started:.0f} s"
    return name, f"{sum(tried.values()):,} tried, {wrong} against the contract", f"{seconds}: {told}"


def verdicts(cases: Iterable[Any], probe: Any) -> Iterator[str]:
    from tests.system.gate_cases import expected

    for case in cases:
        got, right = probe.outcome(case), expected(case)
        yield got if got == right else f"WRONG {got} for {right}: {case}"
