"""Two gpu clusters by mistake, and a queue that delivers everything again and again: one run at a time, each once."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from ftproject.core import tasks
from ftproject.core.jobs import Job
from ftproject.core.models import GpuLease
from tests.core.jobs import make_training
from tests.core.test_tasks import ScriptedExecutor, ScriptedHandle

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS, JOBS = 3, 6
PREPARE = """
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from tests.core.jobs import make_training
for _ in range({jobs}):
    make_training()
"""
# As long as a run takes, and longer than two processes need to notice a free device.
WORK = """
import os, sys, time
import django
django.setup()
from ftproject.core import tasks
from ftproject.core.jobs import job_model

class Ended:
    def poll(self): return 0
    def close(self): pass

class Executor:
    def submit(self, kind, run_id, claim):
        journal("begin", run_id)
        time.sleep(0.3)
        job = job_model(kind)._default_manager.get(pk=run_id)
        job.claim = claim
        job.finish("completed")
        journal("end", run_id)
        return Ended()
    def logs(self, kind, run_id, tail): return ""

def journal(word, run_id):
    descriptor = os.open("journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{word} {run_id}\\n".encode())
    os.close(descriptor)

tasks.POLL_SECONDS = 0.01
print("ready", flush=True)
sys.stdin.readline()
for _ in range(4 * %d):  # each message again and again
    tasks.run_next_job(Executor())
"""


@pytest.mark.slow
def test_clusters_side_by_side_run_each_job_once_and_never_two_at_once(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "QWEN3VL_DATA_DIR": str(tmp_path / "data"),
        "DJANGO_SETTINGS_MODULE": "ftproject.settings",
        "PYTHONPATH": str(ROOT),
    }
    run: dict[str, Any] = {"env": environment, "cwd": tmp_path}
    subprocess.run([sys.executable, "-c", PREPARE.format(jobs=JOBS)], **run, check=True, timeout=120)
    clusters = [
        subprocess.Popen(
            [sys.executable, "-c", WORK % JOBS], **run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(CLUSTERS)
    ]
    for cluster in clusters:
        assert cluster.stdout is not None
        assert cluster.stdout.readline() == "ready\n"
    for cluster in clusters:
        assert cluster.stdin is not None
        cluster.stdin.write("\n")
        cluster.stdin.flush()
    for cluster in clusters:
        cluster.communicate(timeout=120)
    assert [cluster.returncode for cluster in clusters] == [0] * CLUSTERS
    lines = (tmp_path / "journal").read_text().splitlines()
    assert lines == [f"{word} {run_id}" for run_id in range(1, JOBS + 1) for word in ("begin", "end")]


@pytest.mark.django_db(transaction=True)
def test_a_job_that_ran_elsewhere_between_the_look_and_the_claim_is_not_run_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other cluster does the whole job while this one is about to take the device for it."""
    monkeypatch.setattr(tasks, "POLL_SECONDS", 0.001)
    job = make_training()
    elsewhere: list[int] = []

    def other_cluster(execute: Any, sql: str, *call: Any) -> Any:
        if sql.startswith("UPDATE") and GpuLease._meta.db_table in sql and not elsewhere:
            elsewhere.append(job.pk)
            executor = ScriptedExecutor(ScriptedHandle(0), lambda job: job.finish("completed"))
            assert tasks.run_next_job(executor) == f"{job.name} completed"
        return execute(sql, *call)

    executor = ScriptedExecutor(ScriptedHandle(0))
    with connection.execute_wrapper(other_cluster):
        assert tasks.run_next_job(executor) == "nothing to do"
    assert elsewhere == [job.pk]
    assert executor.submitted == []
    job.refresh_from_db()
    assert job.status == Job.Status.COMPLETED
