"""Fixtures of the dataset tests: a client over the real routes, and an upload in one call."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

Upload = Callable[..., Any]
SMALL = b"prompt,response,image\nWhat is 1+1?,2,\nWhat is 2+2?,4,\n"


@pytest.fixture(autouse=True)
def own_data_dir(data_dir: Path) -> Path:
    return data_dir


@pytest.fixture
def client() -> APIClient:
    return APIClient(SERVER_NAME="localhost")


@pytest.fixture
def upload(client: APIClient, db: None) -> Upload:
    def send(content: bytes = SMALL, name: str = "small.csv") -> Any:
        return client.post("/api/datasets/upload", {"file": SimpleUploadedFile(name, content)}, format="multipart")

    return send
