"""Fields that requests of several apps share: which adapter is meant, and how answers are drawn."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from ftproject.engine.configs import GenerationParams
from ftproject.engine.fields import section_schema

LONGEST_PATH = 4096
GENERATION_HELP = "do_sample false ignores the sampling fields."


@extend_schema_field({"oneOf": [{"type": "string"}, {"type": "integer"}]})
class AdapterReferenceField(serializers.Field[Any, Any, Any, Any]):
    """An adapter by path, name or id."""

    default_error_messages = {
        "invalid": "Give the adapter's path, name or id.",
        "too_long": f"No adapter path has more than {LONGEST_PATH} characters.",
    }

    def to_internal_value(self, data: Any) -> str | int:
        if isinstance(data, bool) or not isinstance(data, str | int):
            self.fail("invalid")
        if len(str(data)) > LONGEST_PATH:
            self.fail("too_long")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field(section_schema(GenerationParams, GENERATION_HELP))
class GenerationParamsField(serializers.Field[Any, Any, Any, Any]):
    """Checked by the engine, where names, ranges and defaults live."""

    def to_internal_value(self, data: Any) -> Any:
        return data

    def to_representation(self, value: Any) -> Any:
        return value
