"""Every error in one shape: what DRF, Django and our services raise, and what nobody expected."""

import logging
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import OperationalError
from django.http import Http404, UnreadablePostError
from django.test import Client, RequestFactory
from rest_framework import exceptions as drf

from ftproject.core import errors, problem

MEMBERS = {"type", "title", "status", "detail", "instance", "code", "hint", "errors"}


@pytest.mark.parametrize(
    ("exc", "status", "code"),
    [
        (errors.InvalidInputError("x"), 400, "invalid_input"),
        (errors.NotFoundError("x", code="adapter_not_found"), 404, "adapter_not_found"),
        (errors.ConflictError("x"), 409, "conflict"),
        (errors.TooLargeError("x"), 413, "too_large"),
        (errors.UnsupportedFormatError("x"), 415, "unsupported_media_type"),
        (errors.BusyError("x"), 429, "too_many_requests"),
        (errors.UpstreamError("x"), 502, "upstream_failed"),
        (errors.UnavailableError("x"), 503, "unavailable"),
        (drf.ParseError("x"), 400, "malformed_json"),
        (drf.ValidationError({"page": ["bad"]}), 400, "invalid_input"),
        (drf.MethodNotAllowed("PUT"), 405, "method_not_allowed"),
        (drf.UnsupportedMediaType("text/plain"), 415, "unsupported_media_type"),
        (Http404("x"), 404, "not_found"),
        (PermissionDenied(), 403, "permission_denied"),
        (RequestDataTooBig(), 413, "too_large"),
        (UnreadablePostError("cut"), 400, "request_cut_off"),
        (SuspiciousOperation(), 400, "invalid_input"),
        (OperationalError("database is locked"), 503, "database_busy"),
        (ZeroDivisionError("secret"), 500, "internal_error"),
    ],
)
def test_each_exception_has_its_status_and_code(exc: Exception, status: int, code: str) -> None:
    request = RequestFactory().get("/api/x")
    response = problem.exception_handler(exc, {"request": request})
    assert (response.status_code, response.data["code"]) == (status, code)
    assert set(response.data) >= MEMBERS
    assert "secret" not in str(response.data)


def test_an_unexpected_error_carries_the_id_that_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        _, parts, _ = problem.describe_exception(ZeroDivisionError("boom"), "/api/x")
    assert parts["request_id"] in caplog.text
    assert "boom" in caplog.text


def test_nested_field_errors_are_flat_with_dotted_names() -> None:
    detail = drf.ValidationError({"a": {"b": ["one"]}, "c": [{"d": ["two"]}], "non_field_errors": ["three"]}).detail
    found = [(error.field, error.message) for error in problem.flatten_errors(detail)]
    assert found == [("a.b", "one"), ("c[0].d", "two"), (None, "three")]


def test_a_problem_leaves_out_what_does_not_apply() -> None:
    assert errors.Problem("c", "m", row=3).as_dict() == {"code": "c", "message": "m", "row": 3}


@pytest.mark.parametrize(
    ("name", "near"), [("promt", "prompt"), ("PROMPT", "prompt"), ("image", "image_url"), ("zzz", None)]
)
def test_the_nearest_known_name_is_found(name: str, near: str | None) -> None:
    assert errors.nearest_name(name, ["prompt", "image_url", "answer"]) == near


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/api/nothing", "/api/datasets/upload/more", "/nothing"])
def test_an_unknown_route_is_a_problem_and_no_page(path: str, client: Client) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response["Content-Type"] == problem.CONTENT_TYPE
    assert set(response.json()) >= MEMBERS


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/models/a%0Ab", "/v1/chat/completions/more"])
def test_an_unknown_route_below_v1_is_an_error_that_openais_clients_can_read(path: str, client: Client) -> None:
    response = client.get(path)
    assert (response.status_code, response["Content-Type"]) == (404, "application/json")
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == "not_found"


def body(client: Client, raw: bytes, content_type: str = "application/json") -> Any:
    return client.generic("POST", "/api/sessions/", raw, content_type=content_type)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"name": NaN}',
        b'{"name": Infinity}',
        b'{"name": "a", "name": "b"}',
        b'{"name": "\xff"}',
        b'{"name": "\\ud800"}',
        b"[" * 100_000,
        b'{"name": ' + b"[" * 100_000,
        b'{"name": ' + b"9" * 5000 + b"}",
    ],
)
def test_json_that_is_not_plain_and_sane_is_a_400(raw: bytes, client: Client) -> None:
    response = body(client, raw)
    assert response.status_code == 400
    assert response.json()["code"] in {"malformed_json", "invalid_input"}


@pytest.mark.django_db
@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/x-yaml", "nonsense"])
def test_another_content_type_is_a_415_with_a_hint(content_type: str, client: Client) -> None:
    response = body(client, b"{}", content_type)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert "application/json" in response.json()["hint"]


@pytest.mark.django_db
def test_a_body_over_the_limit_is_a_413_problem(client: Client, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 100
    response = body(client, b'{"name": "' + b"a" * 200 + b'"}')
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


@pytest.mark.django_db
def test_a_codec_in_the_content_type_is_no_way_round_the_size_limit(client: Client) -> None:
    response = body(client, b"{}", "application/json; charset=bz2_codec")
    assert response.status_code in {400, 415, 201}
    assert response.status_code != 500


@pytest.mark.django_db
@pytest.mark.parametrize("route", ["training/runs", "evaluation/runs", "evaluation/export", "sessions", "datasets"])
def test_an_id_too_long_for_any_row_is_a_404(route: str, client: Client) -> None:
    for digits in ("9" * 18, "9" * 19, "9" * 40, "9" * 5000):
        assert client.get(f"/api/{route}/{digits}").status_code == 404


@pytest.mark.django_db
def test_a_wrong_method_names_the_right_ones(client: Client) -> None:
    response = client.put("/api/system/health")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert "GET" in response["Allow"]
