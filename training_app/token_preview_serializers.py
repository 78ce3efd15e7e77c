"""What a token preview is asked for, and what its answer looks like."""

from typing import Any

from rest_framework import serializers

from ftproject.core.errors import InvalidInputError, Problem
from ftproject.core.serializers import StrictIntegerField, StrictSerializer
from training_app.configuration import LARGEST_ID
from training_app.token_preview import (
    MOST_ENTRIES,
    PreviewedTraining,
    PreviewOptions,
    preview_of_defaults,
    preview_of_run,
)


class TokenPreviewQuerySerializer(StrictSerializer):
    row = StrictIntegerField(default=0, min_value=0, max_value=LARGEST_ID, help_text="Row of the dataset, from 0.")
    dataset_id = StrictIntegerField(
        required=False, min_value=1, max_value=LARGEST_ID, help_text="Default: the current dataset."
    )
    run_id = StrictIntegerField(
        required=False, min_value=1, max_value=LARGEST_ID, help_text="The row as this run saw it, of its own dataset."
    )
    offset = StrictIntegerField(default=0, min_value=0, max_value=LARGEST_ID)
    limit = StrictIntegerField(default=4096, min_value=1, max_value=MOST_ENTRIES)


def read_query(query: dict[str, Any]) -> tuple[PreviewOptions, PreviewedTraining]:
    """The options of a GET, and the training it asks about: that of a run, or of all defaults."""
    run_id, dataset_id = query.pop("run_id", None), query.pop("dataset_id", None)
    if run_id is None:
        return PreviewOptions(**query), preview_of_defaults(dataset_id=dataset_id)
    if dataset_id is not None:
        message = "a run has its own dataset: leave dataset_id out"
        problem = Problem(code="conflicting_values", message=message, field="dataset_id")
        raise InvalidInputError(f"dataset_id: {message}.", code="conflicting_values", errors=[problem])
    return PreviewOptions(**query), preview_of_run(run_id=run_id)


class PreviewTokenSerializer(serializers.Serializer[Any]):
    position = serializers.IntegerField(help_text="Place of its first token in the row, from 0.")
    id = serializers.IntegerField()
    text = serializers.CharField(trim_whitespace=False)
    kind = serializers.ChoiceField(["text", "image", "special"])
    count = serializers.IntegerField(help_text="1, or the number of tokens of an image.")
    trained = serializers.BooleanField(help_text="The loss mask: true where the model learns to say this token.")


class PreviewImageSerializer(serializers.Serializer[Any]):
    width = serializers.IntegerField()
    height = serializers.IntegerField()
    resized_width = serializers.IntegerField(help_text="After the pixel rule.")
    resized_height = serializers.IntegerField()
    tokens = serializers.IntegerField()


class TokenCountsSerializer(serializers.Serializer[Any]):
    total = serializers.IntegerField()
    image = serializers.IntegerField()
    trained = serializers.IntegerField()


class PixelRuleSerializer(serializers.Serializer[Any]):
    min_pixels = serializers.IntegerField()
    max_pixels = serializers.IntegerField()


class TokenPreviewSerializer(serializers.Serializer[Any]):
    row = serializers.IntegerField()
    dataset_id = serializers.IntegerField()
    mapping_version = serializers.IntegerField()
    model_name = serializers.CharField()
    max_seq_length = serializers.IntegerField()
    pixel_rule = PixelRuleSerializer()
    skipped = serializers.BooleanField(help_text="Training would leave this row out.")
    skipped_reason = serializers.CharField(allow_null=True)
    split = serializers.ChoiceField(
        ["trained", "heldout"], allow_null=True, help_text="With run_id: the side of the split that the row was on."
    )
    warnings = serializers.ListField(child=serializers.CharField())
    counts = TokenCountsSerializer(allow_null=True, help_text="Null where the row cannot become tokens.")
    fits = serializers.BooleanField(allow_null=True, help_text="Not longer than max_seq_length.")
    consequence = serializers.CharField(allow_null=True, help_text="What becomes of a row that does not fit.")
    images = PreviewImageSerializer(many=True)
    tokens = PreviewTokenSerializer(many=True)
    offset = serializers.IntegerField()
    num_entries = serializers.IntegerField(help_text="Entries of `tokens` without offset and limit.")
