"""The committed OpenAPI schema is the one that the code makes."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from django.test import Client

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "docs" / "openapi.yaml"


def generated(tmp_path: Path) -> Path:
    target = tmp_path / "openapi.yaml"
    call_command("spectacular", file=str(target), validate=True, fail_on_warn=True)
    return target


def test_the_committed_schema_has_not_drifted(tmp_path: Path) -> None:
    assert COMMITTED.read_text() == generated(tmp_path).read_text(), "run `make schema` and commit docs/openapi.yaml"


@pytest.fixture(scope="module")
def schema() -> Any:
    return yaml.safe_load(COMMITTED.read_text())


def operations(schema: Any) -> list[tuple[str, Any]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, item in schema["paths"].items()
        for method, operation in item.items()
    ]


def test_it_is_openapi_3_1(schema: Any) -> None:
    assert schema["openapi"].startswith("3.1")


def test_every_operation_documents_its_errors(schema: Any) -> None:
    silent = [name for name, operation in operations(schema) if "default" not in operation["responses"]]
    assert silent == []


def test_an_error_has_openais_shape_below_v1_and_is_a_problem_everywhere_else(schema: Any) -> None:
    for name, operation in operations(schema):
        (content_type,) = operation["responses"]["default"]["content"]
        assert (content_type == "application/json") == (" /v1/" in name), name


def test_no_answer_is_a_bare_array(schema: Any) -> None:
    assert [name for name, operation in operations(schema) if "'type': 'array'" in str(operation["responses"])] == []


def test_every_operation_says_what_it_does(schema: Any) -> None:
    assert [name for name, operation in operations(schema) if not operation.get("description")] == []


@pytest.mark.django_db
def test_the_schema_and_the_page_are_served_and_work_offline(client: Client) -> None:
    assert client.get("/api/schema").status_code == 200
    page = client.get("/api/docs/")
    assert page.status_code == 200
    text = page.content.decode()
    assert "https://" not in text.replace("https://spec.openapis.org", ""), "the page must load nothing from elsewhere"
