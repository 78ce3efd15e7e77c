"""Shared fixtures: a data directory of the test session's own, and no way out to the network."""

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

# Before Django reads its settings: the tests never touch the developer's data directory or environment.
for name in [name for name in os.environ if name.startswith("QWEN3VL_") and name != "QWEN3VL_DATABASE_URL"]:
    del os.environ[name]
os.environ["QWEN3VL_DATA_DIR"] = tempfile.mkdtemp(prefix="qwen3vl-tests-")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

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
