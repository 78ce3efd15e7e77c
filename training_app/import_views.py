"""The route that takes an adapter of other origin as a zip."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from datasets_app.uploads import UploadParser, uploaded_file
from ftproject.core.serializers import StrictCharField, StrictSerializer
from ftproject.core.views import ApiViewSet, check
from training_app.import_services import NAME_RULE, ImportedAdapter, upload_import
from training_app.serializers import AdapterDetailSerializer

BESIDE = ("name", "base_model_name")


class ImportOptionsSerializer(StrictSerializer):
    name = StrictCharField(
        required=False, max_length=200, help_text=f"Default: the folder's in the zip, or the file's. {NAME_RULE}."
    )
    base_model_name = StrictCharField(
        required=False, max_length=500, help_text="Where the adapter's config names a folder of another machine."
    )


class ImportFormSerializer(ImportOptionsSerializer):
    file = serializers.FileField(help_text="A zip of the adapter's folder.")


class ImportedAdapterSerializer(AdapterDetailSerializer):
    """The adapter, and what was found in it."""

    warnings = serializers.ListField(child=serializers.CharField())
    modules = serializers.ListField(child=serializers.CharField(), help_text="The modules that it changes.")
    parameters = serializers.IntegerField()
    dtype = serializers.CharField()
    checked_against_base = serializers.BooleanField(
        help_text="Names and shapes were compared with the base's weights; false where those are not on this machine."
    )

    class Meta(AdapterDetailSerializer.Meta):
        fields = [
            *AdapterDetailSerializer.Meta.fields,
            "warnings",
            "modules",
            "parameters",
            "dtype",
            "checked_against_base",
        ]
        read_only_fields = fields


IMPORTED = {
    "id": 2,
    "name": "digits",
    "path": "/path/to/adapters/digits",
    "created_at": "2026-02-15T14:30:22Z",
    "run_id": None,
    "base_model_name": "tiny-qwen3-vl",
    "r": 16,
    "size_bytes": 811000,
    "effective": None,
    "sha256": "…",
    "warnings": [],
    "modules": ["model.language_model.layers.0.self_attn.q_proj"],
    "parameters": 4096,
    "dtype": "F32",
    "checked_against_base": True,
}


class AdapterImportViewSet(ApiViewSet):
    """Adapters that were trained elsewhere."""

    @extend_schema(
        operation_id="training_adapters_import",
        tags=["adapters"],
        request={"multipart/form-data": ImportFormSerializer},
        responses={201: ImportedAdapterSerializer},
        examples=[OpenApiExample("Imported", value=IMPORTED, response_only=True, status_codes=["201"])],
    )
    @action(detail=False, methods=["post"], url_path="import", parser_classes=[UploadParser])
    def take(self, request: Request) -> Response:
        """Takes an existing PEFT folder as a zip: safetensors only, every tensor looked at, all or nothing."""
        file = uploaded_file(request, beside=BESIDE)
        form: Any = request.data
        options = check(ImportOptionsSerializer, {name: form[name] for name in BESIDE if name in form})
        return Response(describe_import(upload_import(file=file, **options)), status=201)


def describe_import(imported: ImportedAdapter) -> dict[str, Any]:
    facts = imported.facts
    found = {name: getattr(facts, name) for name in ("parameters", "dtype", "checked_against_base")}
    lists = {"warnings": list(facts.warnings), "modules": list(facts.modules)}
    return {**AdapterDetailSerializer(imported.adapter).data, **found, **lists}
