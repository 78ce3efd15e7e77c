"""Continuing a run from the command line and from the admin: the same service, the same refusals."""

from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from datasets_app.models import Dataset
from ftproject.core import waiting
from tests.training_app.test_train_command import OtherProcess
from tests.training_app.world import Api, trained_run, work_queue
from training_app.models import TrainingRun


@pytest.fixture
def beside_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "time", OtherProcess(work_queue))
    monkeypatch.setattr(waiting, "queue_worker_seen", lambda: True)


@pytest.mark.usefixtures("beside_a_worker")
def test_the_command_goes_on_and_prints_the_adapter(dead: TrainingRun, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("train", "--resume", str(dead.pk))
    run = TrainingRun.objects.get(resumed_from=dead)
    out = capsys.readouterr().out
    assert f"Continues run {dead.pk} from step 4" in out
    assert out.splitlines()[-1] == str(run.adapter.path)


def test_a_run_that_failed_says_how_to_go_on(
    beside_a_worker: Any, dead: TrainingRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die() -> None:
        TrainingRun.objects.filter(status="queued").update(status="error", error="Killed.")

    monkeypatch.setattr(waiting, "time", OtherProcess(die))
    with pytest.raises(SystemExit) as leave:
        call_command("train", "--resume", str(dead.pk))
    run = TrainingRun.objects.get(resumed_from=dead)
    assert leave.value.code == 1
    assert f"manage.py train --resume {run.pk}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resume", "999"], "There is no training run 999"),
        (["--resume", "1", "--max-steps", "3"], "leave out sft_config"),
        (["--resume", "1", "--dataset", "1"], "leave out dataset_id"),
        (["--resume", "x"], "invalid int value"),
    ],
)
def test_a_wrong_call_is_refused(dead: TrainingRun, flags: list[str], words: str) -> None:
    with pytest.raises(CommandError, match=words):
        call_command("train", *flags)
    assert TrainingRun.objects.count() == 1


def test_the_command_passes_the_refusal_on(api: Api, dataset: Dataset) -> None:
    run = trained_run(api)
    with pytest.raises(CommandError, match="complete: nothing is left to do"):
        call_command("train", "--resume", str(run.pk))


def test_the_admin_resumes_each_selected_run_or_says_why_not(api: Api, dead: TrainingRun) -> None:
    complete = trained_run(api)
    admin = Client(HTTP_HOST="localhost")
    admin.force_login(get_user_model().objects.create_superuser("root"))
    answer = admin.post(
        reverse("admin:training_app_trainingrun_changelist"),
        {"action": "resume_runs", "_selected_action": [dead.pk, complete.pk]},
        follow=True,
    )
    run = TrainingRun.objects.get(resumed_from=dead)
    text = answer.content.decode()
    assert f"Run {run.pk} continues run {dead.pk} from step 4." in text
    assert "nothing is left to do" in text
