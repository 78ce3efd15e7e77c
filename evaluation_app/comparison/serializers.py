"""Request and response shapes of comparisons."""

import math
from typing import Any

from django.http import QueryDict
from drf_spectacular.utils import PolymorphicProxySerializer
from rest_framework import serializers

from evaluation_app.comparison.pairing import ALL, SEEN, TRANSITIONS, UNSEEN
from evaluation_app.comparison.verdict import BETTER, CANNOT_TELL, MCNEMAR, SIGN_FLIP, WORSE
from evaluation_app.models import Sample
from ftproject.core.pagination import PageSerializer
from ftproject.core.serializers import StrictCharField, StrictIntegerField, StrictSerializer

MOST_CANDIDATES = 20
LARGEST_ID = 2**63 - 1
LARGEST_SEED = 2**63 - 1
MOST_ROWS_SHOWN = 2000


class StrictFloatField(serializers.FloatField):
    """A finite JSON number; in a query string the same field takes digits."""

    def to_internal_value(self, data: Any) -> float:
        in_query_string = isinstance(getattr(self.root, "initial_data", None), QueryDict)
        if isinstance(data, bool) or (isinstance(data, str) and not in_query_string):
            self.fail("invalid")
        value = super().to_internal_value(data)
        if not math.isfinite(value):
            self.fail("invalid")
        return value


class CompareChoicesSerializer(StrictSerializer):
    """What body and query string have in common."""

    baseline_run_id = StrictIntegerField(min_value=1, max_value=LARGEST_ID, help_text="Most often a run of the base.")
    metric = StrictCharField(
        default=None,
        allow_null=True,
        max_length=100,
        help_text="What the verdict is about; null: accuracy in classification, else exact_match.",
    )
    rows = serializers.ChoiceField(
        choices=[ALL, SEEN, UNSEEN],
        default=None,
        allow_null=True,
        help_text="Which rows are judged; null: those that training did not see where that is known, else all.",
    )
    confidence_level = StrictFloatField(
        default=0.95, min_value=0.5, max_value=0.999, help_text="Of the intervals; the verdict's test is at 5 %."
    )
    num_resamples = StrictIntegerField(default=2000, min_value=100, max_value=20_000, help_text="Of the bootstrap.")
    seed = StrictIntegerField(default=0, min_value=0, max_value=LARGEST_SEED)
    transition = serializers.ChoiceField(
        choices=list(TRANSITIONS), default=None, allow_null=True, help_text="Only such rows are listed."
    )


class CompareRunsSerializer(CompareChoicesSerializer, PageSerializer):
    """Two finished runs over the same dataset; or several candidates against one baseline."""

    candidate_run_id = StrictIntegerField(default=None, allow_null=True, min_value=1, max_value=LARGEST_ID)
    candidate_run_ids = serializers.ListField(
        child=StrictIntegerField(min_value=1, max_value=LARGEST_ID),
        default=None,
        allow_null=True,
        min_length=1,
        max_length=MOST_CANDIDATES,
        help_text="Several candidates in one table: p values are adjusted by Holm's method, no rows are listed.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if (attrs["candidate_run_id"] is None) == (attrs["candidate_run_ids"] is None):
            raise serializers.ValidationError(
                {"candidate_run_id": "Give candidate_run_id or candidate_run_ids, one of them."}
            )
        return attrs


class CompareExportSerializer(CompareChoicesSerializer):
    candidate_run_id = StrictIntegerField(min_value=1, max_value=LARGEST_ID)
    format = serializers.ChoiceField(choices=["csv", "json", "html"], default="csv")
    raw = serializers.BooleanField(default=False, help_text="CSV without the escape of cells that are formulas.")
    max_rows = StrictIntegerField(
        default=200, min_value=1, max_value=MOST_ROWS_SHOWN, help_text="HTML: rows shown, fixed and broken ones first."
    )


class ComparedRunSerializer(serializers.Serializer[Any]):
    run_id = serializers.IntegerField()
    model_type = serializers.CharField()
    model_name = serializers.CharField()
    adapter = serializers.CharField(allow_null=True)
    eval_mode = serializers.CharField()
    rows = serializers.CharField()
    num_samples = serializers.IntegerField()
    num_skipped = serializers.IntegerField()
    num_reused = serializers.IntegerField()
    created_at = serializers.DateTimeField()


class TransitionCountsSerializer(serializers.Serializer[Any]):
    fixed = serializers.IntegerField(help_text="Wrong in the baseline, right in the candidate.")
    broken = serializers.IntegerField(help_text="Right in the baseline, wrong in the candidate.")
    both_right = serializers.IntegerField()
    both_wrong = serializers.IntegerField()


class PartsSerializer(serializers.Serializer[Any]):
    all = TransitionCountsSerializer()
    seen = TransitionCountsSerializer(allow_null=True)
    unseen = TransitionCountsSerializer(allow_null=True)


class DifferenceSerializer(serializers.Serializer[Any]):
    baseline = serializers.FloatField()
    candidate = serializers.FloatField()
    difference = serializers.FloatField(help_text="Candidate minus baseline.")
    low = serializers.FloatField()
    high = serializers.FloatField()
    higher_is_better = serializers.BooleanField()


class LeftOutSerializer(serializers.Serializer[Any]):
    only_in_baseline = serializers.IntegerField()
    only_in_candidate = serializers.IntegerField()
    skipped_in_baseline = serializers.IntegerField()
    skipped_in_candidate = serializers.IntegerField()
    skipped_in_both = serializers.IntegerField()
    without_label = serializers.IntegerField()


class NoticeSerializer(serializers.Serializer[Any]):
    code = serializers.CharField()
    message = serializers.CharField()


class ComparedAnswerSerializer(serializers.ModelSerializer[Sample]):
    class Meta:
        model = Sample
        fields = (
            "prediction",
            "exact_match",
            "token_f1",
            "token_precision",
            "token_recall",
            "scores",
            "label",
            "finish_reason",
            "reused",
        )


class ComparedRowSerializer(serializers.Serializer[Any]):
    index = serializers.IntegerField()
    transition = serializers.ChoiceField(choices=list(TRANSITIONS))
    seen_in_training = serializers.BooleanField(allow_null=True)
    prompt = serializers.CharField()
    ground_truth = serializers.CharField()
    baseline = ComparedAnswerSerializer()
    candidate = ComparedAnswerSerializer()


class ComparisonSerializer(serializers.Serializer[Any]):
    """A candidate against the baseline, without the rows."""

    baseline = ComparedRunSerializer()
    candidate = ComparedRunSerializer()
    dataset_id = serializers.IntegerField()
    verdict = serializers.ChoiceField(choices=[BETTER, WORSE, CANNOT_TELL])
    sentence = serializers.CharField(help_text="The verdict in plain words.")
    rows = serializers.ChoiceField(choices=[ALL, SEEN, UNSEEN], help_text="Which rows were judged.")
    num_rows = serializers.IntegerField()
    num_units = serializers.IntegerField(help_text="Independent groups of rows: rows that share an image are one.")
    transitions = TransitionCountsSerializer()
    metric = serializers.CharField(help_text="What the verdict is about.")
    difference = serializers.FloatField(help_text="Candidate minus baseline.")
    higher_is_better = serializers.BooleanField()
    test = serializers.ChoiceField(choices=[MCNEMAR, SIGN_FLIP])
    p_value = serializers.FloatField(help_text="What the verdict rests on.")
    p_value_adjusted = serializers.FloatField(allow_null=True, help_text="By Holm's method, with several candidates.")
    mcnemar_p_value = serializers.FloatField(help_text="Exact, of fixed against broken, each row for itself.")
    test_level = serializers.FloatField()
    rows_to_settle = serializers.IntegerField(
        allow_null=True,
        help_text="Rows that would show the observed difference with 80 % power; null when settled or 0.",
    )
    detectable_difference = serializers.FloatField(
        allow_null=True, help_text="About the smallest difference that these rows show with 80 % power."
    )
    differences = serializers.DictField(child=DifferenceSerializer(allow_null=True))
    confidence_level = serializers.FloatField()
    num_resamples = serializers.IntegerField()
    seed = serializers.IntegerField()
    parts = PartsSerializer()
    not_compared = LeftOutSerializer()
    warnings = NoticeSerializer(many=True)


class ComparisonWithRowsSerializer(ComparisonSerializer):
    """The answer for one candidate."""

    pairs = ComparedRowSerializer(many=True)
    transition = serializers.ChoiceField(choices=list(TRANSITIONS), allow_null=True)
    page = serializers.IntegerField()
    page_size = serializers.IntegerField()
    total = serializers.IntegerField()
    total_pages = serializers.IntegerField()


class ComparisonTableSerializer(serializers.Serializer[Any]):
    """The answer for several candidates."""

    correction = serializers.ChoiceField(choices=["holm"])
    comparisons = ComparisonSerializer(many=True)


COMPARE_ANSWER = PolymorphicProxySerializer(
    component_name="CompareAnswer",
    serializers=[ComparisonWithRowsSerializer, ComparisonTableSerializer],
    resource_type_field_name=None,
)
