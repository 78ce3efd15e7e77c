"""What session requests may hold and what their answers look like."""

from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from ftproject.core.pagination import MAX_PAGE_SIZE, PageSerializer
from ftproject.core.serializers import StrictCharField, StrictIntegerField, StrictSerializer
from sessions_app.selectors import EXPORT_FORMAT, EXPORT_VERSION
from training_app.serializers import StartedSerializer

NAME_LENGTH, STATUS_LENGTH, PATH_LENGTH, DESCRIPTION_LENGTH = 200, 32, 4000, 20_000


@extend_schema_field({"oneOf": [{"type": "string"}, {"type": "object"}]})
class ConfigField(serializers.Field[Any, Any, Any, Any]):
    """A training configuration: an object, or its JSON text. Its settings are checked by the service."""

    default_error_messages = {"invalid": "Must be an object or its JSON text."}

    def to_internal_value(self, data: Any) -> str | dict[str, Any]:
        if not isinstance(data, str | dict):
            self.fail("invalid")
        return data

    def to_representation(self, value: Any) -> Any:
        return value


class SaveConfigSerializer(StrictSerializer):
    training_config = ConfigField(required=False, allow_null=True)
    adapter_path = StrictCharField(required=False, allow_null=True, allow_blank=True, max_length=PATH_LENGTH)
    status = StrictCharField(
        required=False, max_length=STATUS_LENGTH, help_text="draft, ready, training, completed, error, archived, ..."
    )


class PatchSessionSerializer(SaveConfigSerializer):
    name = StrictCharField(required=False, max_length=NAME_LENGTH)
    description = StrictCharField(required=False, allow_blank=True, max_length=DESCRIPTION_LENGTH)


class CreateSessionSerializer(PatchSessionSerializer):
    name = StrictCharField(max_length=NAME_LENGTH)


class ImportSessionSerializer(StrictSerializer):
    """The document of an export."""

    format = StrictCharField()
    version = StrictIntegerField()
    name = StrictCharField(max_length=NAME_LENGTH)
    description = StrictCharField(required=False, allow_blank=True, max_length=DESCRIPTION_LENGTH)
    training_config = ConfigField(required=False, allow_null=True)

    def validate_format(self, value: str) -> str:
        if value != EXPORT_FORMAT:
            raise serializers.ValidationError(f"Must be {EXPORT_FORMAT!r}: an export of this product.")
        return value

    def validate_version(self, value: int) -> int:
        if value != EXPORT_VERSION:
            raise serializers.ValidationError(f"Version {value} is not known here; this is version {EXPORT_VERSION}.")
        return value


class SessionPageSerializer(PageSerializer):
    page_size = StrictIntegerField(default=MAX_PAGE_SIZE, min_value=1, max_value=MAX_PAGE_SIZE)


class SessionSerializer(serializers.Serializer[Any]):
    id = serializers.IntegerField()
    name = serializers.CharField()
    description = serializers.CharField()
    status = serializers.CharField()
    training_config = ConfigField(allow_null=True, help_text="As it was saved.")
    training_config_effective = serializers.DictField(allow_null=True, help_text="With every default filled in.")
    adapter_path = serializers.CharField(allow_null=True)
    run_id = serializers.IntegerField(allow_null=True)
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField()


class SessionListSerializer(serializers.Serializer[Any]):
    sessions = SessionSerializer(many=True)
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total = serializers.IntegerField()
    total_pages = serializers.IntegerField()


class SessionExportSerializer(serializers.Serializer[Any]):
    format = serializers.ChoiceField([EXPORT_FORMAT])
    version = serializers.IntegerField()
    name = serializers.CharField()
    description = serializers.CharField()
    training_config = ConfigField(allow_null=True)


class StartedSessionSerializer(StartedSerializer):
    session_id = serializers.IntegerField()
