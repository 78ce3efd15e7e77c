"""Request and response shapes of the pictures of a row."""

from typing import Any

from rest_framework import serializers

from ftproject.core.serializers import StrictIntegerField, StrictSerializer
from ftproject.engine.thumbnails import DEFAULT_SIZE, MAX_SIZE, MIN_SIZE


class RowImagesQuerySerializer(StrictSerializer):
    mapping_version = StrictIntegerField(
        default=None,
        allow_null=True,
        min_value=1,
        max_value=2**31 - 1,
        help_text="The mapping with which a run was made; the newest when left out.",
    )


class ThumbnailQuerySerializer(RowImagesQuerySerializer):
    size = StrictIntegerField(
        default=DEFAULT_SIZE, min_value=MIN_SIZE, max_value=MAX_SIZE, help_text="Largest width and height in pixels."
    )


class RowImageSerializer(serializers.Serializer[Any]):
    number = serializers.IntegerField(help_text="Place among the images of the row, counted from 0.")
    column = serializers.CharField()
    cell = serializers.CharField(help_text="What the cell says, at most 200 characters of it.")
    available = serializers.BooleanField(help_text="Whether the image is on this machine; nothing is fetched here.")
    code = serializers.CharField(allow_null=True, help_text="Why it is not, as in the table of image errors.")
    message = serializers.CharField(allow_null=True)
    thumbnail = serializers.CharField()


class RowImageListSerializer(serializers.Serializer[Any]):
    dataset_id = serializers.IntegerField()
    index = serializers.IntegerField()
    images = RowImageSerializer(many=True)
