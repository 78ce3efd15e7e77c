"""Half-written files never take the place of whole ones."""

from pathlib import Path
from typing import Any

import pytest

from ftproject.core import storage


def test_a_file_appears_whole_or_not_at_all(data_dir: Path) -> None:
    target = storage.datasets_dir() / "a.parquet"
    with storage.publish_file(target) as partial:
        partial.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"


def write_half(target: Path) -> None:
    with storage.publish_file(target) as partial:
        partial.write_text("half")
        raise OSError("disk full")


def test_a_failed_write_leaves_the_old_file_and_no_leftover(data_dir: Path) -> None:
    target = storage.datasets_dir() / "a.parquet"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(target)
    assert target.read_text() == "old"
    assert [path.name for path in storage.datasets_dir().iterdir()] == ["a.parquet"]


def test_leftovers_of_a_killed_process_are_swept(data_dir: Path) -> None:
    (storage.adapters_dir() / ".partial-adapter_1-ab").mkdir()
    (storage.adapters_dir() / ".partial-adapter_1-ab" / "half.safetensors").write_text("x")
    (storage.images_dir() / "ab").mkdir()
    (storage.images_dir() / "ab" / ".partial-picture").write_text("x")
    (data_dir / "tmp").mkdir()
    (data_dir / "tmp" / "half.upload").write_text("x")
    whole = storage.adapters_dir() / "adapter_2"
    whole.mkdir()
    assert storage.sweep_partials() == 0, "a command may be writing these"
    assert storage.sweep_partials(older_than=0) == 3
    assert list(data_dir.rglob(".partial-*")) == []
    assert whole.exists()


def test_a_socket_path_is_short_enough_for_linux(data_dir: Path, settings: Any) -> None:
    assert len(str(storage.socket_path())) < 108
    settings.DATA_DIR = data_dir / ("deep" * 30)
    assert len(str(storage.socket_path())) < 108
