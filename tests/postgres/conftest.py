"""Tests that only a PostgreSQL server can answer: skipped elsewhere, `make test-postgres` runs them."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection


@pytest.fixture
def postgres(transactional_db: None) -> None:
    if connection.vendor != "postgresql":
        pytest.skip("needs PostgreSQL: make test-postgres")


class Writers:
    """Other connections of the same database: each call runs in a thread of its own, which closes what it opened."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(8)
        self.release = threading.Event()

    def start(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        return self.pool.submit(self.run, work, *arguments)

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return work(*arguments)
        finally:
            connection.close()


@pytest.fixture
def writers(postgres: None) -> Any:
    made = Writers()
    yield made
    made.release.set()
    made.pool.shutdown()
