"""A disk that is really full, on a small tmpfs: a short version of `python -m benchmarks full_disk`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRIED = "upload,import of an adapter,training,evaluation"


def may_mount() -> bool:
    """Whether this machine lets an ordinary user have a mount namespace (containers often do not)."""
    if shutil.which("unshare") is None:
        return False
    script = "mount -t tmpfs -o size=1m none /mnt"
    return subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="no mount namespaces here")
def test_on_a_full_disk_each_operation_says_so_loses_nothing_and_works_with_room_again() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", "full_disk"],
        env={**os.environ, "LEVELS": "2", "OPERATIONS": TRIED},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "rows lost 0" in " ".join(ended.stdout.replace("│", " ").split()).replace("  ", " ")
