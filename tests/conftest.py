"""Shared fixtures: a data directory for one test, and no way out to the network."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import OperationalError
from hypothesis import settings as hypothesis_settings

# The first example pays for its imports (scikit-learn: 2 s on a busy machine); pytest's timeout ends what hangs.
# The suite tries the same examples every time, so that a commit is judged by its own change; `long` draws new ones.
hypothesis_settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis_settings.register_profile("long", deadline=None, max_examples=1000)
hypothesis_settings.load_profile("suite")

LOOPBACK = ("127.", "::1", "localhost")


class NetworkBlockedError(RuntimeError):
    pass


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection to an address that is not loopback fails the test loudly."""
    real_connect = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
            raise NetworkBlockedError(f"a test tried to reach {address}")
        real_connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def data_dir(tmp_path: Path, settings: Any) -> Path:
    """A data directory for one test."""
    settings.DATA_DIR = tmp_path
    return tmp_path


@pytest.fixture
def broken_commits(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Each persistent write is done, reported as failed (the connection broke while it committed), and tried again."""
    from ftproject.core import persistence

    done: list[object] = []
    real = persistence.whole
    failed: set[Any] = set()

    def whole(work: Callable[[], object]) -> object:
        result = real(work)
        if work in failed:
            return result
        failed.add(work)
        done.append(result)
        error = OperationalError("server closed the connection unexpectedly")
        raise error from psycopg.OperationalError()

    monkeypatch.setattr(persistence, "whole", whole)
    monkeypatch.setattr(persistence, "PAUSE_SECONDS", 0)
    return done
