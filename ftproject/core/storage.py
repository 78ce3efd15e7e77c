"""Where things lie under the data directory, and the one way to put them there: beside, fsync, rename."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

PARTIAL = ".partial-"
WRITTEN_BESIDE = ("adapters", "datasets", "images", "exports", "models")
LEFTOVER_SECONDS = 3600.0


def data_path(*parts: str) -> Path:
    """A path below the data directory; its parent folder exists afterwards."""
    path = Path(settings.DATA_DIR).joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def adapters_dir() -> Path:
    return _folder("adapters")


def datasets_dir() -> Path:
    return _folder("datasets")


def images_dir() -> Path:
    return _folder("images")


def models_dir() -> Path:
    return _folder("models")


def exports_dir() -> Path:
    return _folder("exports")


def runs_dir() -> Path:
    return _folder("runs")


def run_path(kind: str, run_id: int) -> Path:
    """Where scratch and checkpoints of one run lie, or would lie."""
    return Path(settings.DATA_DIR) / "runs" / f"{kind}-{run_id}"


def run_dir(kind: str, run_id: int) -> Path:
    """The same, there to be written to."""
    path = run_path(kind, run_id)
    path.mkdir(parents=True, exist_ok=True)
    return path


def log_path(kind: str, run_id: int) -> Path:
    return data_path("logs", f"{kind}-{run_id}.log")


def socket_path() -> Path:
    """The model server's unix socket. Linux allows 107 bytes, so a deep data directory falls back to /tmp."""
    path = data_path("run", "model-server.sock")
    if len(os.fsencode(path)) < 100:
        return path
    digest = uuid.uuid5(uuid.NAMESPACE_URL, str(path)).hex[:16]
    return Path("/tmp") / f"qwen3vl-{os.getuid()}-{digest}.sock"  # nosec B108 # noqa: S108


def _folder(name: str) -> Path:
    path = Path(settings.DATA_DIR) / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def partial_path(target: Path) -> Path:
    return target.with_name(f"{PARTIAL}{target.name}-{uuid.uuid4().hex[:8]}")


@contextmanager
def publish_file(target: Path) -> Iterator[Path]:
    """Yields a path to write to; it becomes `target` in one step when the block ends well, else it is removed."""
    partial = partial_path(target)
    try:
        yield partial
        fsync_path(partial)
        partial.replace(target)
        fsync_path(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_partials(older_than: float = LEFTOVER_SECONDS) -> int:
    """Removes what killed processes left half-written. Young ones stay: a command may be writing beside the server."""
    stale = [path for path in half_written() if path.exists() and path.stat().st_mtime < time.time() - older_than]
    for path in stale:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(stale)


def half_written() -> list[Path]:
    """What is being written now, or was when its process died."""
    found = [path for folder in WRITTEN_BESIDE for path in _folder(folder).rglob(f"{PARTIAL}*")]
    return found + list(_folder("tmp").iterdir())  # uploads that were cut off
