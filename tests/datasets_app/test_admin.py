"""The admin of datasets: lists that render, nothing to edit, and the same services behind the actions."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from datasets_app.models import Dataset
from datasets_app.services import mapping_set
from tests.datasets_app.conftest import Upload
from training_app.models import TrainingRun

CHANGELIST = "/admin/datasets_app/dataset/"


@pytest.fixture
def admin(db: None) -> Client:
    client = Client(SERVER_NAME="localhost")
    client.force_login(User.objects.create_superuser("root", password="secret"))
    return client


@pytest.fixture
def dataset(upload: Upload) -> Dataset:
    upload()
    return Dataset.objects.get()


def act(admin: Client, action: str, *datasets: Dataset) -> str:
    data: dict[str, Any] = {"action": action, "_selected_action": [dataset.pk for dataset in datasets]}
    return admin.post(CHANGELIST, data, follow=True).content.decode()


def test_the_lists_show_datasets_and_mappings_with_links_to_runs(admin: Client, dataset: Dataset) -> None:
    mapping_set(dataset=dataset, prompt_column="prompt", response_column="response")
    page = admin.get(CHANGELIST, {"q": "small"}).content.decode()
    assert "small.csv" in page
    assert f"/admin/training_app/trainingrun/?dataset__id__exact={dataset.pk}" in page
    assert "small.csv" in admin.get("/admin/datasets_app/columnmapping/").content.decode()


def test_facts_cannot_be_edited_added_or_deleted_past_the_service(admin: Client, dataset: Dataset) -> None:
    assert admin.get(f"{CHANGELIST}{dataset.pk}/change/").status_code == 200
    assert admin.post(f"{CHANGELIST}{dataset.pk}/change/", {"filename": "x"}).status_code == 403
    assert admin.get(f"{CHANGELIST}add/").status_code == 403
    assert admin.post(f"{CHANGELIST}{dataset.pk}/delete/", {"post": "yes"}).status_code == 403


def test_the_delete_action_removes_row_and_file(admin: Client, dataset: Dataset) -> None:
    path = dataset.table_path
    assert "Deleted small.csv" in act(admin, "delete_datasets", dataset)
    assert not Dataset.objects.exists()
    assert not path.exists()


def test_the_delete_action_shows_why_a_used_dataset_stays(admin: Client, dataset: Dataset) -> None:
    mapping = mapping_set(dataset=dataset, prompt_column="prompt", response_column="response")
    TrainingRun.objects.create(dataset=dataset, mapping=mapping, model_name="tiny")
    assert "is used by training run" in act(admin, "delete_datasets", dataset)
    assert Dataset.objects.exists()


def test_the_current_dataset_is_switched_by_an_action(admin: Client, dataset: Dataset, upload: Upload) -> None:
    upload(b"a,b\n1,2\n", "newer.csv")
    newer = Dataset.objects.get(filename="newer.csv")
    assert "exactly one" in act(admin, "make_current", dataset, newer)
    assert "is current" in act(admin, "make_current", dataset)
    assert Dataset.objects.get(is_current=True) == dataset
