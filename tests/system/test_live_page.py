"""The page at `/` stands alone, and asks only routes that exist."""

import re
from typing import Any

import pytest
from django.test import Client

pytestmark = pytest.mark.django_db


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
    paths = sorted(set(re.findall(r"[\"'`](/api/[a-z/-]+)", page.content.decode())))
    assert {"/api/system/health", "/api/training/runs", "/api/evaluation/runs"} <= set(paths)
    client = Client(HTTP_HOST="localhost")
    assert {path: client.get(path).status_code for path in paths} == dict.fromkeys(paths, 200)


def test_data_never_becomes_markup(page: Any) -> None:
    text = page.content.decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text)


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_it_can_only_be_read(method: str) -> None:
    assert getattr(Client(HTTP_HOST="localhost"), method)("/").status_code == 405
