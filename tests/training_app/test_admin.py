"""The admin's pages: every list and page opens, facts cannot be edited, actions go through the services."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from datasets_app.models import Dataset
from sessions_app.models import TrainingSession
from tests.training_app.test_adapters import evaluate_with
from tests.training_app.world import Api, claimed, trained_run
from training_app.models import Adapter, TrainingMetric, TrainingRun

MODELS = [
    "training_app_trainingrun",
    "training_app_trainingmetric",
    "training_app_adapter",
    "sessions_app_trainingsession",
]


@pytest.fixture
def page(api: Api, dataset: Dataset) -> Client:
    client = Client(HTTP_HOST="localhost")
    client.force_login(User.objects.create_superuser("admin", password="x"))
    return client


def act(page: Client, model: str, action: str, *rows: Any) -> str:
    """The page after an action on rows, with its messages."""
    data = {"action": action, "_selected_action": [row.pk for row in rows]}
    answer = page.post(reverse(f"admin:{model}_changelist"), data, follow=True)
    assert answer.status_code == 200
    return str(answer.content.decode())


def test_every_list_and_every_page_opens(page: Client, api: Api) -> None:
    run = trained_run(api, sft_config={"max_steps": 2})
    session = TrainingSession.objects.create(name="one", run=run, status="training")
    rows = [run, run.logged.first(), run.adapter, session]
    for model, row in zip(MODELS, rows, strict=True):
        assert page.get(reverse(f"admin:{model}_changelist"), {"q": "1"}).status_code == 200
        assert row is not None
        assert page.get(reverse(f"admin:{model}_change", args=[row.pk])).status_code == 200


def test_the_pages_link_run_adapter_and_dataset(page: Client, api: Api) -> None:
    run = trained_run(api)
    text = page.get(reverse("admin:training_app_trainingrun_changelist")).content.decode()
    assert reverse("admin:training_app_adapter_change", args=[run.adapter.pk]) in text
    assert reverse("admin:datasets_app_dataset_change", args=[run.dataset_id]) in text
    steps = page.get(reverse("admin:training_app_trainingmetric_changelist"), {"run__id__exact": run.pk})
    assert steps.status_code == 200


@pytest.mark.parametrize("model", MODELS[:3])
def test_facts_can_neither_be_added_nor_edited_nor_deleted_past_the_services(
    page: Client, api: Api, model: str
) -> None:
    run = trained_run(api)
    row = {"training_app_trainingrun": run, "training_app_adapter": run.adapter}.get(model, run.logged.first())
    assert row is not None
    assert page.get(reverse(f"admin:{model}_add")).status_code == 403
    assert page.post(reverse(f"admin:{model}_change", args=[row.pk]), {"message": "forged"}).status_code == 403
    assert page.post(reverse(f"admin:{model}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    assert "delete_selected" not in page.get(reverse(f"admin:{model}_changelist")).content.decode()


def test_stopping_goes_through_the_service(page: Client, api: Api) -> None:
    api.post("/api/training/start", {})
    running = claimed(TrainingRun.objects.get())
    ended = TrainingRun.objects.create(
        dataset=running.dataset, mapping=running.mapping, model_name="tiny", status="completed"
    )
    text = act(page, MODELS[0], "stop_runs", running, ended)
    assert f"Run {running.pk}: stopping." in text
    assert f"Training run {ended.pk} is not running." in text
    assert TrainingRun.objects.get(pk=running.pk).stop_requested_at is not None


def test_deleting_runs_and_adapters_asks_the_services(page: Client, api: Api) -> None:
    run = trained_run(api)
    assert "is still there" in act(page, MODELS[0], "delete_runs", run)
    evaluation = evaluate_with(run.adapter)
    assert "is used by evaluation" in act(page, MODELS[2], "delete_adapters", run.adapter)
    assert Adapter.objects.exists()
    evaluation.delete()
    assert f"Adapter {run.adapter.name} is deleted." in act(page, MODELS[2], "delete_adapters", run.adapter)
    assert not run.adapter.path.exists()
    assert f"Run {run.pk} is deleted." in act(page, MODELS[0], "delete_runs", run)
    assert not TrainingMetric.objects.exists()


def test_sessions_are_started_and_copied_from_the_list(page: Client) -> None:
    good = TrainingSession.objects.create(name="good", training_config='{"max_steps": 3}')
    bad = TrainingSession.objects.create(name="bad", training_config='{"bygone": 3}')
    text = act(page, MODELS[3], "start_sessions", good, bad)
    run = TrainingRun.objects.get()
    assert f"Session good: run {run.pk} is started." in text
    assert "Bygone: is not a known field." in text
    assert run.config["sft_config"]["max_steps"] == 3
    assert "Session good: copied to good (copy)." in act(page, MODELS[3], "clone_sessions", good)


def test_a_viewer_is_offered_no_action(api: Api, dataset: Dataset) -> None:
    from django.contrib.auth.models import Permission

    trained_run(api)
    viewer = User.objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client = Client(HTTP_HOST="localhost")
    client.force_login(viewer)
    text = client.get(reverse("admin:training_app_trainingrun_changelist")).content.decode()
    assert "stop_runs" not in text
    assert "delete_runs" not in text
