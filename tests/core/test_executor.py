"""The local executor: a real child process that dies with its parent and whose last words are kept."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ftproject.core.executor import LocalExecutor, run_environment, tail_of

PARENT = """
import os, sys, time
sys.path.insert(0, {root!r})
os.environ["DJANGO_SETTINGS_MODULE"] = "ftproject.settings"
import django; django.setup()
from ftproject.core.executor import LocalExecutor
import ftproject.core.executor as module
module.sys = type("S", (), {{"executable": {launcher!r}}})
handle = LocalExecutor().submit("training", 1, "claim")
print(handle.process.pid, flush=True)
time.sleep(60)
"""
LAUNCHER = """#!{python}
import sys, time
sys.path.insert(0, {root!r})
parent = int(sys.argv[sys.argv.index("--parent") + 1])
from ftproject.worker import die_with_parent
die_with_parent(parent)
print("alive", flush=True)
time.sleep(60)
"""
ROOT = str(Path(__file__).resolve().parents[2])


def wait_until(condition: object, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_run_process_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    launcher = tmp_path / "python"
    launcher.write_text(LAUNCHER.format(python=sys.executable, root=ROOT))
    launcher.chmod(0o755)
    environment = {**os.environ, "QWEN3VL_DATA_DIR": str(tmp_path / "data")}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(root=ROOT, launcher=str(launcher))],
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    log = tmp_path / "data" / "logs" / "training-1.log"
    assert wait_until(lambda: log.exists() and "alive" in log.read_text())
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 2)


def test_a_run_that_is_not_claimed_exits_and_leaves_its_log(data_dir: Path) -> None:
    handle = LocalExecutor().submit("training", 424242, "nobody")
    assert wait_until(lambda: handle.poll() is not None, 60)
    handle.close()
    assert handle.poll() not in {0, None}
    assert LocalExecutor().logs("training", 424242, 5)


def test_killing_ends_the_whole_group(data_dir: Path) -> None:
    handle = LocalExecutor().submit("training", 424243, "nobody")
    handle.kill()
    assert handle.poll() == -9
    handle.close()


def test_a_run_process_gets_one_cpu_thread_unless_told_otherwise() -> None:
    assert run_environment({})["OMP_NUM_THREADS"] == "1"
    assert run_environment({"QWEN3VL_CPU_THREADS": "4"})["OMP_NUM_THREADS"] == "4"
    assert run_environment({"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"


def test_a_run_process_does_not_pass_for_a_cluster() -> None:
    assert "Q_CLUSTER_NAME" not in run_environment({"Q_CLUSTER_NAME": "gpu"})


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("\n".join(str(number) for number in range(100_000)))
    assert tail_of(log, 2) == "99998\n99999"
    assert tail_of(tmp_path / "missing.log", 2) == ""
