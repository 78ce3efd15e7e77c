"""Schema generation: every operation documents the one error shape beside its own answers."""

from typing import Any, Literal

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import is_list_serializer

from ftproject.core.problem import OPENAI_PREFIX

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "hint", "errors"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "Stable, snake_case."},
        "hint": {"type": "string", "description": "What to do next."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {
                    "field": {"type": "string"},
                    "row": {"type": "integer"},
                    "column": {"type": "string"},
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                },
            },
        },
        "request_id": {"type": "string"},
    },
}


OPENAI_ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string", "description": "Stable, snake_case."},
            },
        }
    },
}
PROBLEM_ANSWER = {
    "description": "Any error: RFC 9457 with a stable code and a hint.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
OPENAI_ERROR_ANSWER = {
    "description": "Any error, as OpenAI's clients read it.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}},
}


class ProblemAutoSchema(AutoSchema):
    """Adds the one error answer to every operation, and takes no list route's answer for a bare array."""

    def _get_response_bodies(self, direction: Literal["request", "response"] = "response") -> dict[str, Any]:
        bodies: dict[str, Any] = super()._get_response_bodies(direction)
        bodies["default"] = OPENAI_ERROR_ANSWER if self.path.startswith(OPENAI_PREFIX) else PROBLEM_ANSWER
        return bodies

    def _is_list_view(self, serializer: Any = None) -> bool:
        """drf-spectacular takes an action called `list` for one that gives an array; ours give objects that hold one.

        Without a serializer it asks in order to name the operation, and may conclude.
        """
        return bool(super()._is_list_view() if serializer is None else is_list_serializer(serializer))


def add_error_components(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Post-processing hook of drf-spectacular."""
    schemas = result.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {"Problem": PROBLEM_SCHEMA, "OpenAIError": OPENAI_ERROR_SCHEMA}
    return result


def strip_trailing_slashes(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Post-processing hook: both slash forms answer; the schema names the one that the user's document uses."""
    collections = {"/api/datasets/", "/api/sessions/"}
    paths = result["paths"]
    result["paths"] = {path if path in collections else path.rstrip("/"): item for path, item in paths.items()}
    return result
