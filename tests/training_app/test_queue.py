"""The queue of trainings: first come, first served, whatever is cancelled, requeued or resumed meanwhile."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets_app.models import Dataset
from ftproject.core.jobs import Job, requeue_job
from tests.training_app.world import Api, claimed, queued, run_process, work_queue
from training_app.models import TrainingRun

ROOT = Path(__file__).resolve().parents[2]
TWO_STEPS = {"sft_config": {"max_steps": 2}}
PREPARE = """
import django
django.setup()
from pathlib import Path
from django.core.management import call_command
call_command("migrate", verbosity=0)
from tests.training_app.world import load_dataset, numbered_rows
load_dataset(Path({folder!r}), numbered_rows())
"""
# Both are ready before either begins: the moment is agreed upon, not waited for.
START = """
import sys, time
import django
django.setup()
from training_app.services import start_training
from training_app.models import TrainingRun
TrainingRun.objects.count()
print("ready", flush=True)
sys.stdin.readline()
print(start_training(body={}, idempotency_key="both").run.pk, flush=True)
"""


def place(api: Api, run: TrainingRun) -> int | None:
    position: int | None = api.get(f"/api/training/runs/{run.pk}").json()["queue_position"]
    return position


def test_runs_start_in_the_order_in_which_they_came(api: Api, dataset: Dataset) -> None:
    runs = [queued(api, **TWO_STEPS) for _ in range(3)]
    assert [place(api, run) for run in runs] == [1, 2, 3]
    assert work_queue() == [f"training:{run.pk} completed" for run in runs]


def test_who_leaves_the_queue_moves_the_others_up_and_changes_no_order(api: Api, dataset: Dataset) -> None:
    first, second, third, last = (queued(api, **TWO_STEPS) for _ in range(4))
    api.post(f"/api/training/runs/{second.pk}/stop")
    assert [place(api, run) for run in (first, second, third, last)] == [1, None, 2, 3]
    assert work_queue() == [f"training:{run.pk} completed" for run in (first, third, last)]
    second.refresh_from_db()
    assert (second.status, second.started_at) == ("error", None)


def test_a_cancelled_run_cannot_be_cancelled_again_and_never_comes_back(api: Api, dataset: Dataset) -> None:
    run = queued(api)
    api.post(f"/api/training/runs/{run.pk}/stop")
    answer = api.post(f"/api/training/runs/{run.pk}/stop")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_active_run")
    assert work_queue() == []


def test_a_run_that_a_shutdown_put_back_keeps_its_place(api: Api, dataset: Dataset) -> None:
    first, second = queued(api, **TWO_STEPS), queued(api, **TWO_STEPS)
    claimed(first)
    assert requeue_job(first, message="Waiting for the next start of the server")
    assert [place(api, run) for run in (first, second)] == [1, 2]
    assert work_queue() == [f"training:{run.pk} completed" for run in (first, second)]


def test_a_continuation_that_a_shutdown_put_back_goes_on_from_the_same_step(api: Api, dead: TrainingRun) -> None:
    run = TrainingRun.objects.get(pk=api.post(f"/api/training/runs/{dead.pk}/resume").json()["run_id"])
    claimed(run)
    assert requeue_job(run, message="Waiting for the next start of the server")
    run_process(run)
    assert (run.status, run.resumed_step, run.current_step) == ("completed", 4, 10)
    assert list(run.logged.values_list("step", flat=True)) == list(range(1, 11))


def test_a_continuation_waits_behind_those_that_came_before_it(api: Api, dead: TrainingRun) -> None:
    before = queued(api, **TWO_STEPS)
    run_id = api.post(f"/api/training/runs/{dead.pk}/resume").json()["run_id"]
    after = queued(api, **TWO_STEPS)
    order = [f"training:{number} completed" for number in (before.pk, run_id, after.pk)]
    assert work_queue() == order


@pytest.mark.slow
def test_two_processes_with_one_key_start_one_run(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "QWEN3VL_DATA_DIR": str(tmp_path / "data"),
        "QWEN3VL_BACKEND": "fake",
        "DJANGO_SETTINGS_MODULE": "ftproject.settings",
        "PYTHONPATH": str(ROOT),
    }
    prepare = PREPARE.format(folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", prepare], env=environment, cwd=ROOT, check=True, timeout=120)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers == ["1", "1"]


def test_a_run_that_ended_is_claimed_by_nobody(api: Api, dataset: Dataset) -> None:
    run = queued(api, **TWO_STEPS)
    work_queue()
    run.refresh_from_db()
    assert run.status == Job.Status.COMPLETED
    with pytest.raises(AssertionError):
        claimed(run)
    assert work_queue() == []
