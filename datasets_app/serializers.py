"""Bodies, query strings and answers of the dataset routes."""

from collections.abc import Sequence
from typing import Any

from rest_framework import serializers

from datasets_app.models import ColumnMapping, Dataset
from ftproject.core.pagination import MAX_PAGE, MAX_PAGE_SIZE
from ftproject.core.serializers import StrictCharField, StrictIntegerField, StrictSerializer

MAX_ID = 2**63 - 1
MAX_COLUMN_LISTED = 2000
DATASET_FIELDS = (
    "dataset_id",
    "filename",
    "num_rows",
    "num_columns",
    "columns",
    "format",
    "encoding",
    "delimiter",
    "sha256",
    "size_bytes",
    "is_current",
    "created_at",
)


def _dataset_id() -> StrictIntegerField:
    return StrictIntegerField(
        required=False, allow_null=True, min_value=1, max_value=MAX_ID, help_text="Default: the current dataset."
    )


def _column(**options: Any) -> StrictCharField:
    # Column names are verbatim: a blank at the end is part of the name.
    return StrictCharField(max_length=1000, trim_whitespace=False, **options)


class UploadSerializer(serializers.Serializer[Any]):
    file = serializers.FileField(help_text="CSV, TSV, JSON Lines or Parquet.")


class DatasetQuerySerializer(StrictSerializer):
    dataset_id = _dataset_id()


class MappingSerializer(StrictSerializer):
    dataset_id = _dataset_id()
    prompt_column = _column()
    response_column = _column()
    ground_truth_column = _column(required=False, allow_null=True, default=None, help_text="null: the response column.")
    image_url_columns = serializers.ListField(child=_column(), required=False, max_length=MAX_COLUMN_LISTED)
    image_separator = StrictCharField(
        required=False,
        allow_null=True,
        default=None,
        max_length=16,
        trim_whitespace=False,
        help_text="Splits one cell into several images.",
    )
    mandatory_columns = serializers.ListField(
        child=_column(),
        required=False,
        max_length=MAX_COLUMN_LISTED,
        help_text="Rows where one of these is empty are skipped in training and evaluation.",
    )


class PreviewSerializer(StrictSerializer):
    dataset_id = _dataset_id()
    page = StrictIntegerField(default=1, min_value=1, max_value=MAX_PAGE)
    page_size = StrictIntegerField(default=20, min_value=1, max_value=MAX_PAGE_SIZE)


class ConversationsQuerySerializer(StrictSerializer):
    dataset_id = _dataset_id()
    start = StrictIntegerField(default=0, min_value=0, max_value=MAX_ID)
    count = StrictIntegerField(default=3, min_value=1, max_value=MAX_PAGE_SIZE)


class RowField(serializers.DictField):
    child = serializers.CharField()


class DatasetResponseSerializer(serializers.ModelSerializer[Dataset]):
    dataset_id = serializers.IntegerField(source="pk", read_only=True)

    class Meta:
        model = Dataset
        fields: Sequence[str] = DATASET_FIELDS


class UploadResponseSerializer(DatasetResponseSerializer):
    sample_rows = serializers.ListField(child=RowField())

    class Meta(DatasetResponseSerializer.Meta):
        fields: Sequence[str] = (*DATASET_FIELDS, "sample_rows")


class DatasetListSerializer(serializers.Serializer[Any]):
    datasets = DatasetResponseSerializer(many=True)


class InfoResponseSerializer(serializers.Serializer[Any]):
    loaded = serializers.BooleanField()
    dataset_id = serializers.IntegerField(allow_null=True)
    filename = serializers.CharField(allow_null=True)
    num_rows = serializers.IntegerField(allow_null=True)
    num_columns = serializers.IntegerField(allow_null=True)
    columns = serializers.ListField(child=serializers.CharField(), allow_null=True)
    format = serializers.CharField(allow_null=True)
    encoding = serializers.CharField(allow_null=True)
    delimiter = serializers.CharField(allow_null=True)
    sha256 = serializers.CharField(allow_null=True)
    size_bytes = serializers.IntegerField(allow_null=True)
    is_current = serializers.BooleanField(allow_null=True)
    created_at = serializers.DateTimeField(allow_null=True)


class ColumnsResponseSerializer(serializers.Serializer[Any]):
    columns = serializers.ListField(child=serializers.CharField())
    dataset_id = serializers.IntegerField()


class MappingResponseSerializer(serializers.ModelSerializer[ColumnMapping]):
    class Meta:
        model = ColumnMapping
        fields = (
            "prompt_column",
            "response_column",
            "ground_truth_column",
            "image_url_columns",
            "image_separator",
            "mandatory_columns",
            "dataset_id",
            "version",
            "created_at",
        )


class PreviewResponseSerializer(serializers.Serializer[Any]):
    rows = serializers.ListField(child=RowField())
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total_rows = serializers.IntegerField()
    total_pages = serializers.IntegerField()
    dataset_id = serializers.IntegerField()


class ContentSerializer(serializers.Serializer[Any]):
    type = serializers.ChoiceField(choices=["image", "text"])
    image = serializers.CharField(required=False)
    text = serializers.CharField(required=False)


class MessageSerializer(serializers.Serializer[Any]):
    role = serializers.ChoiceField(choices=["user", "assistant"])
    content = ContentSerializer(many=True)


class ConversationSerializer(serializers.Serializer[Any]):
    index = serializers.IntegerField()
    messages = MessageSerializer(many=True)
    skipped = serializers.BooleanField()
    skipped_reason = serializers.CharField(allow_null=True)


class ConversationsResponseSerializer(serializers.Serializer[Any]):
    conversations = ConversationSerializer(many=True)
    start = serializers.IntegerField()
    count = serializers.IntegerField()
    total = serializers.IntegerField()
    dataset_id = serializers.IntegerField()
