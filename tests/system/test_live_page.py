"""The page at `/` stands alone, and asks only routes that exist."""

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import resolve

pytestmark = pytest.mark.django_db
# Answers only about runs that there are.
LINKS_WITH_RUNS = {"/api/evaluation/compare/export"}


@pytest.fixture
def page() -> Any:
    answer = Client(HTTP_HOST="localhost").get("/")
    assert answer.status_code == 200
    return answer


def test_it_loads_nothing_from_elsewhere(page: Any) -> None:
    text = page.content.decode()
    assert re.findall(r"(?:src|href)=[\"']?(?!/|data:)[^\"'\s>]+", text) == []
    assert "http://" not in text
    assert "https://" not in text.replace('"https:"', "")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_every_route_it_asks_answers(page: Any) -> None:
    paths = sorted(set(re.findall(r"[\"'`](/api/[a-z/-]+)(?![a-z/-]|\$)", page.content.decode())) - LINKS_WITH_RUNS)
    assert {"/api/system/health", "/api/training/runs", "/api/evaluation/runs"} <= set(paths)
    client = Client(HTTP_HOST="localhost")
    assert {path: client.get(path).status_code for path in paths} == dict.fromkeys(paths, 200)


def test_every_address_with_a_run_in_it_has_a_route(page: Any) -> None:
    addresses = re.findall(r"`(/(?:api|admin)/[^`]*\$\{run[^`]*)`", page.content.decode())
    paths = [re.sub(r"\$\{[^}]+\}", "7", address).split("?")[0] for address in addresses]
    assert len(paths) >= 4
    for path in paths:
        resolve(path)
    admin_pages = [path for path in paths if path.startswith("/admin/")]
    assert [resolve(path).url_name for path in admin_pages] == ["evaluation_app_run_samples"]


def test_data_never_becomes_markup(page: Any) -> None:
    text = page.content.decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text)


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_it_can_only_be_read(method: str) -> None:
    assert getattr(Client(HTTP_HOST="localhost"), method)("/").status_code == 405
