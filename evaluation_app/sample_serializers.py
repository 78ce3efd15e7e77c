"""The query string of the samples route, and what a sample looks like, with links to the pictures of its row."""

import math
from typing import Any

from rest_framework import serializers

from evaluation_app.models import Sample
from evaluation_app.samples import DEFAULT_METRIC, SORTS, thumbnails_of
from ftproject.core.pagination import PageSerializer


class BoundField(serializers.FloatField):
    """A number; DRF takes nan and inf for numbers too."""

    def to_internal_value(self, data: Any) -> float:
        value = super().to_internal_value(data)
        if not math.isfinite(value):
            self.fail("invalid")
        return value


class SampleQuerySerializer(PageSerializer):
    correct = serializers.BooleanField(default=None, allow_null=True, help_text="Exact match, or not.")
    skipped = serializers.BooleanField(default=None, allow_null=True)
    seen = serializers.BooleanField(default=None, allow_null=True, help_text="Seen in training, or not.")
    reused = serializers.BooleanField(default=None, allow_null=True, help_text="Copied from an earlier run, or not.")
    label = serializers.CharField(  # type: ignore[assignment]  # a query's name, not the serializer's title
        default=None,
        allow_null=True,
        allow_blank=True,
        trim_whitespace=False,
        max_length=200,
        help_text="The label read from the answer, as `label` shows it; empty: answers that hold none.",
    )
    q = serializers.CharField(
        default="",
        allow_blank=True,
        trim_whitespace=False,
        max_length=1000,
        help_text="Text in prompt, ground truth or prediction.",
    )
    sort = serializers.ChoiceField(
        choices=SORTS, default="index", help_text="By row, or by a metric; samples without a score stand last."
    )
    metric = serializers.CharField(
        default=None,
        allow_null=True,
        max_length=200,
        help_text=f"Whose scores `sort`, `min_score` and `max_score` mean; {DEFAULT_METRIC} when left out.",
    )
    min_score = BoundField(default=None, allow_null=True, help_text="At least this much of the metric.")
    max_score = BoundField(default=None, allow_null=True, help_text="At most this much of the metric.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        low, high = attrs["min_score"], attrs["max_score"]
        if low is not None and high is not None and low > high:
            raise serializers.ValidationError({"min_score": f"{low} is more than max_score, {high}."})
        if attrs["metric"] and attrs["sort"] == "index" and low is None and high is None:
            message = "A metric says what sort=worst, sort=best, min_score or max_score mean; none of them is given."
            raise serializers.ValidationError({"metric": message})
        return attrs


class SampleSerializer(serializers.ModelSerializer[Sample]):
    """Takes the run with its mapping as `context["run"]`."""

    scores = serializers.DictField(
        child=serializers.FloatField(allow_null=True), help_text="The run's named metrics; null where undefined."
    )
    score_details = serializers.DictField(help_text="What the run's figures are summed from, by metric.")
    label_probabilities = serializers.DictField(
        child=serializers.FloatField(), allow_null=True, help_text="With confidence: every label's probability."
    )
    thumbnails = serializers.SerializerMethodField(help_text="A small picture of each image of the row.")

    class Meta:
        model = Sample
        fields = (
            "index",
            "prompt",
            "ground_truth",
            "prediction",
            "exact_match",
            "token_f1",
            "token_precision",
            "token_recall",
            "skipped",
            "skipped_reason",
            "seen_in_training",
            "reused",
            "scores",
            "score_details",
            "label",
            "confidence",
            "label_probabilities",
            "finish_reason",
            "prompt_tokens",
            "completion_tokens",
            "thumbnails",
        )

    def get_thumbnails(self, sample: Sample) -> list[str]:
        return thumbnails_of(sample, self.context["run"])


class SamplePageSerializer(serializers.Serializer[Any]):
    samples = SampleSerializer(many=True)
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total = serializers.IntegerField()
    total_pages = serializers.IntegerField()
