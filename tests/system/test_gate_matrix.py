"""The gate against the contract's text: every route, method and combination of headers that decides, and `/ws`.

The whole product, millions of cases, is `python -m benchmarks.gate_matrix`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
from django.urls import get_resolver, resolve

from ftproject.scopes import ROUTE_SCOPES
from tests.system.gate_cases import METHODS, Case, Route, expected, routes, some_headers, walk
from tests.system.gate_probe import Probe

pytestmark = pytest.mark.django_db
SAMPLE = 30


@pytest.fixture
def probe() -> Iterator[Probe]:
    probe = Probe()
    yield probe
    probe.close()


def check(cases: Iterable[Case], probe: Probe) -> Counter[str]:
    tried: Counter[str] = Counter()
    for case in cases:
        got = probe.outcome(case)
        assert got == expected(case), case
        tried[got] += 1
    return tried


def test_every_route_and_method_admits_whom_the_contract_admits(probe: Probe) -> None:
    tried: Counter[str] = Counter()
    for route in routes():
        for method in METHODS:
            tried += check(some_headers(SAMPLE, method, route.path, mapped=method in route.methods), probe)
    assert sum(tried.values()) == len(routes()) * len(METHODS) * SAMPLE
    assert min(tried.values()) > 500, tried
    assert set(tried) >= {"local", "key", "authentication_required", "insufficient_scope", "invalid_api_key"}


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/system/health"), ("POST", "/api/training/start")])
def test_thousands_of_combinations_of_headers_on_a_read_and_on_a_write(method: str, path: str, probe: Probe) -> None:
    tried = check(some_headers(6000, method, path), probe)
    assert tried["local"] > 50
    assert tried["key"] > 500


def test_web_sockets_pass_the_same_gate(probe: Probe) -> None:
    tried = check(some_headers(4000, "GET", "/ws", kind="websocket"), probe)
    assert tried["local"] > 50
    assert tried["key"] > 200
    assert "insufficient_scope" not in tried


def test_an_address_that_leads_nowhere_is_not_found_for_a_key_and_secret_for_everybody_else(probe: Probe) -> None:
    tried: Counter[str] = Counter()
    for path in ("/api/nothing", "/v1/nothing", "/adminx", "/staticx", "/api/../admin/", "//api/system/health"):
        tried += check(some_headers(200, "POST", path, known=False), probe)
    assert tried["not_found"] > 20


def test_every_route_and_method_of_the_url_conf_has_a_scope_and_no_scope_lacks_its_route() -> None:
    found = set()
    for _, pattern in walk(get_resolver().url_patterns):
        actions = getattr(pattern.callback, "actions", None) or {"get": ""}
        found |= {(method.upper(), str(pattern.name)) for method in actions if method != "head"}
    assert len(found) > 70
    assert found == set(ROUTE_SCOPES)


def test_the_paths_of_the_matrix_are_those_of_the_url_conf() -> None:
    assert len(routes()) > 140
    for route in routes():
        assert resolve(route.path).func is not None
    assert Route("/api/datasets/7", frozenset({"GET", "HEAD", "DELETE"})) in routes()
