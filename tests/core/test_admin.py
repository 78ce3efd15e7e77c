"""The admin's pages of events and of the lease: to look at, with links, without a way to change them."""

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from ftproject.core.events import publish
from ftproject.core.lease import acquire_lease
from ftproject.core.models import Event, GpuLease
from tests.core.jobs import make_training

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin() -> Client:
    client = Client(HTTP_HOST="localhost")
    client.force_login(User.objects.create_superuser("root"))
    return client


def test_events_are_listed_with_a_link_to_their_run(admin: Client) -> None:
    run = make_training()
    publish("training_error", {"run_id": run.pk, "error": "no memory"}, run_kind="training", run_id=run.pk)
    publish("model_status", {"loaded": False, "mode": None, "adapter": None})
    text = admin.get(reverse("admin:core_event_changelist")).content.decode()
    assert "no memory" in text
    assert reverse("admin:training_app_trainingrun_change", args=[run.pk]) in text


def test_events_are_found_by_type_and_by_their_text(admin: Client) -> None:
    publish("training_error", {"run_id": 1, "error": "needle"}, run_kind="training", run_id=1)
    publish("eval_error", {"run_id": 2, "error": "straw"}, run_kind="evaluation", run_id=2)
    url = reverse("admin:core_event_changelist")
    found = admin.get(url, {"q": "needle"}).content.decode()
    assert "needle" in found
    assert "straw" not in found
    filtered = admin.get(url, {"type": "eval_error"}).content.decode()
    assert "straw" in filtered
    assert "needle" not in filtered


def test_a_long_event_is_cut_in_the_list_only(admin: Client) -> None:
    event = publish("eval_error", {"run_id": 2, "error": "x" * 5000}, run_kind="evaluation", run_id=2)
    assert "x" * 300 not in admin.get(reverse("admin:core_event_changelist")).content.decode()
    assert "x" * 5000 in admin.get(reverse("admin:core_event_change", args=[event.pk])).content.decode()


def test_the_lease_shows_its_holder_and_not_its_token(admin: Client) -> None:
    token = acquire_lease("training:5")
    assert token
    for url in (
        reverse("admin:core_gpulease_changelist"),
        reverse("admin:core_gpulease_change", args=[GpuLease.objects.get().pk]),
    ):
        text = admin.get(url).content.decode()
        assert "training:5" in text
        assert token not in text


@pytest.mark.parametrize("model", ["event", "gpulease"])
def test_nothing_can_be_added_changed_or_deleted(admin: Client, model: str) -> None:
    publish("model_status", {"loaded": False, "mode": None, "adapter": None})
    assert acquire_lease("training:5")
    row = {"event": Event, "gpulease": GpuLease}[model]._default_manager.get()
    assert admin.get(reverse(f"admin:core_{model}_add")).status_code == 403
    assert admin.post(reverse(f"admin:core_{model}_change", args=[row.pk]), {"holder": ""}).status_code == 403
    assert admin.post(reverse(f"admin:core_{model}_delete", args=[row.pk]), {"post": "yes"}).status_code == 403
    row.refresh_from_db()
