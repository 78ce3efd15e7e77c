"""Serializers that refuse what they do not know, by name and with the nearest known one."""

from typing import Any

from django.http import QueryDict
from rest_framework import serializers

from ftproject.core.errors import did_you_mean


class StrictCharField(serializers.CharField):
    """A string that was a string in the JSON: DRF would take 12 and 1.5 for text too."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class StrictBooleanField(serializers.BooleanField):
    """true or false: DRF would take "yes", 1 and "on" too."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class StrictIntegerField(serializers.IntegerField):
    """A whole JSON number; in a query string the same field takes digits."""

    def to_internal_value(self, data: Any) -> int:
        in_query_string = isinstance(getattr(self.root, "initial_data", None), QueryDict)
        if isinstance(data, bool | float) or (isinstance(data, str) and not in_query_string):
            self.fail("invalid")
        return super().to_internal_value(data)


class StrictSerializer(serializers.Serializer[Any]):
    """A request body or query string; an unknown field is an error that names the nearest known one."""

    def to_internal_value(self, data: Any) -> Any:
        if hasattr(data, "keys"):
            wrong = self.unknown_fields(data) | self.blank_parameters(data)
            if wrong:
                raise serializers.ValidationError(wrong)
        return super().to_internal_value(data)

    def unknown_fields(self, data: Any) -> dict[str, list[str]]:
        known = [name for name, field in self.fields.items() if not field.read_only]
        return {
            str(name): [serializers.ErrorDetail(f"Unknown field. {did_you_mean(str(name), known)}", "unknown_field")]
            for name in data
            if name not in known
        }

    def blank_parameters(self, data: Any) -> dict[str, list[str]]:
        """DRF takes `?status=` for no `status` at all, as of a form: `?status=$UNSET` would list every run."""
        if not isinstance(data, QueryDict):
            return {}
        message = "Blank: give it a value, or leave it out."
        return {
            name: [serializers.ErrorDetail(message, "blank")]
            for name, field in self.fields.items()
            if data.get(name) == "" and not getattr(field, "allow_blank", False)
        }


class DeletedSerializer(serializers.Serializer[Any]):
    """The answer of every DELETE."""

    status = serializers.ChoiceField(["deleted"])
    id = serializers.IntegerField()
