"""Schema generation: every operation documents the one error shape beside its own answers."""

from typing import Any, Literal

from drf_spectacular.openapi import AutoSchema

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


class ProblemAutoSchema(AutoSchema):
    """Adds `default: application/problem+json` to every operation."""

    def _get_response_bodies(self, direction: Literal["request", "response"] = "response") -> dict[str, Any]:
        bodies: dict[str, Any] = super()._get_response_bodies(direction)
        schema = {"$ref": "#/components/schemas/Problem"}
        bodies["default"] = {
            "description": "Any error: RFC 9457 with a stable code and a hint.",
            "content": {"application/problem+json": {"schema": schema}},
        }
        return bodies


def add_problem_component(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Post-processing hook of drf-spectacular."""
    result.setdefault("components", {}).setdefault("schemas", {})["Problem"] = PROBLEM_SCHEMA
    return result


def strip_trailing_slashes(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Post-processing hook: both slash forms answer; the schema names the one that the user's document uses."""
    collections = {"/api/datasets/", "/api/sessions/"}
    paths = result["paths"]
    result["paths"] = {path if path in collections else path.rstrip("/"): item for path, item in paths.items()}
    return result
