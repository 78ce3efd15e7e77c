"""Turns every error of the API into one shape: RFC 9457 application/problem+json."""

import errno
import logging
import uuid
from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.http import Http404, HttpRequest, JsonResponse, UnreadablePostError
from rest_framework import exceptions as drf
from rest_framework.response import Response
from rest_framework.views import set_rollback

from ftproject.core.database_faults import is_away, is_busy, is_full
from ftproject.core.errors import Problem, ProductError

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
OPENAI_PREFIX = "/v1/"
TITLES = {499: "Client Closed Request"}  # nginx's; the standard has none
HINTS = {
    "invalid_input": "Correct what `errors` names; /api/docs shows every field with its type and range.",
    "not_found": "See /api/docs for the routes.",
    "method_not_allowed": "See the Allow header, or /api/docs.",
    "unsupported_media_type": "Send JSON with 'Content-Type: application/json' (uploads: multipart/form-data).",
    "malformed_json": "Check quotes, commas and brackets; NaN and Infinity are not JSON.",
    "too_large": "Send less in one request, or raise QWEN3VL_MAX_BODY_MB / QWEN3VL_MAX_UPLOAD_MB.",
    "internal_error": "Try again; if it stays, look for the request_id in the server's log.",
    "database_busy": "Try again in a moment.",
    "database_unavailable": "Try again in a moment; if it stays, look at the server's log and QWEN3VL_DATABASE_URL.",
    "disk_full": "Free space in the data directory: `manage.py prune` shows what can go.",
}


def problem_body(
    status: int,
    code: str,
    detail: str,
    instance: str,
    *,
    hint: str = "",
    errors: list[Problem] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    return {
        "type": f"urn:qwen3vl:problem:{code}",
        "title": TITLES.get(status) or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
        "code": code,
        "hint": hint or HINTS.get(code) or HINTS["invalid_input" if status < 500 else "internal_error"],
        "errors": [error.as_dict() for error in errors or []],
        **extra,
    }


def openai_error(problem: dict[str, Any]) -> dict[str, Any]:
    """A problem body in OpenAI's shape; the hint stands in the message, the only text that its clients show."""
    errors = problem.get("errors") or []
    first = errors[0] if errors else {}
    field = first.get("field") if isinstance(first, dict) else getattr(first, "field", None)
    kind = "invalid_request_error" if problem["status"] < 500 else "server_error"
    end = "" if problem["detail"].endswith((".", "?", "!")) else "."
    message = f"{problem['detail']}{end} {problem.get('hint') or ''}".strip()
    return {"error": {"message": message, "type": kind, "param": field, "code": problem["code"]}}


def error_document(path: str, problem: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A problem body as the clients of this path read errors, and its content type."""
    if path.startswith(OPENAI_PREFIX):
        return openai_error(problem), "application/json"
    return problem, CONTENT_TYPE


def problem_response(request: HttpRequest, status: int, code: str, detail: str, **parts: Any) -> JsonResponse:
    """A problem outside DRF (middleware, Django's own error handlers)."""
    headers = parts.pop("headers", None)
    body, content_type = error_document(request.path, problem_body(status, code, detail, request.path, **parts))
    return JsonResponse(body, status=status, content_type=content_type, headers=headers)


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response:
    """DRF's EXCEPTION_HANDLER: no exception of a view leaves the API in another shape."""
    request = context["request"]
    set_rollback()
    status, parts, headers = describe_exception(exc, request.path)
    body, content_type = error_document(request.path, problem_body(status, instance=request.path, **parts))
    return Response(body, status=status, headers=headers, content_type=content_type)


def describe_exception(exc: Exception, path: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body parts and headers for any exception."""
    if isinstance(exc, ProductError):
        parts = {"code": exc.code, "detail": exc.detail, "hint": exc.hint, "errors": exc.errors, **exc.extra}
        return exc.status, parts, exc.headers
    if isinstance(exc, drf.ValidationError):
        errors = flatten_errors(exc.detail)
        detail = "; ".join(f"{e.field}: {e.message}" if e.field else e.message for e in errors[:5])
        return 400, {"code": "invalid_input", "detail": detail, "errors": errors}, {}
    if isinstance(exc, Http404):
        return 404, {"code": "not_found", "detail": str(exc) or "There is nothing here."}, {}
    if isinstance(exc, drf.APIException):
        return describe_api_exception(exc)
    return describe_django_exception(exc, path)


def describe_api_exception(exc: drf.APIException) -> tuple[int, dict[str, Any], dict[str, str]]:
    code = "malformed_json" if isinstance(exc, drf.ParseError) else str(exc.default_code)
    if isinstance(exc, drf.MethodNotAllowed):
        code = "method_not_allowed"
    return exc.status_code, {"code": code, "detail": str(exc.detail)}, {}


def describe_django_exception(exc: Exception, path: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    if isinstance(exc, RequestDataTooBig):
        return 413, {"code": "too_large", "detail": "The request body is larger than allowed."}, {}
    if isinstance(exc, PermissionDenied):
        return 403, {"code": "permission_denied", "detail": "This request is not allowed."}, {}
    if isinstance(exc, UnreadablePostError):
        return (
            400,
            {"code": "request_cut_off", "detail": "The connection closed before the whole body arrived."},
            {},
        )
    if isinstance(exc, SuspiciousOperation):
        return 400, {"code": "invalid_input", "detail": "The request could not be understood."}, {}
    if is_away(exc):
        logger.warning("the database is away at %s: %s", path, exc)
        return 503, {"code": "database_unavailable", "detail": "The database does not answer."}, {"Retry-After": "2"}
    if is_busy(exc):
        logger.warning("the database is busy at %s: %s", path, exc)
        return 503, {"code": "database_busy", "detail": "The database is busy."}, {"Retry-After": "1"}
    if is_disk_full(exc):
        logger.error("disk full at %s: %s", path, exc)
        return 503, {"code": "disk_full", "detail": "The disk is full. What was saved before is not harmed."}, {}
    return describe_unexpected(exc, path)


def is_disk_full(exc: Exception) -> bool:
    """Whether the system, or the database in its own words, says that there is no room."""
    return is_full(exc) or (isinstance(exc, OSError) and exc.errno in {errno.ENOSPC, errno.EDQUOT})


def describe_unexpected(exc: Exception, path: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    request_id = uuid.uuid4().hex
    logger.error("request %s failed at %s", request_id, path, exc_info=exc)
    detail = "Something went wrong on our side. Nothing you saved is lost."
    return 500, {"code": "internal_error", "detail": detail, "request_id": request_id}, {}


def flatten_errors(detail: Any, path: str = "") -> list[Problem]:
    """DRF's nested error dictionary as a flat list with dotted field names."""
    if isinstance(detail, dict):
        return [
            problem
            for key, value in detail.items()
            for problem in flatten_errors(value, path if key == "non_field_errors" else f"{path}.{key}".lstrip("."))
        ]
    if isinstance(detail, list | tuple):
        if all(isinstance(item, dict) for item in detail) and detail:
            return [p for i, item in enumerate(detail) for p in flatten_errors(item, f"{path}[{i}]")]
        return [problem for item in detail for problem in flatten_errors(item, path)]
    code = str(getattr(detail, "code", "invalid"))
    return [Problem(code=code, message=str(detail), field=path or None)]
