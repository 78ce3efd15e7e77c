"""What reports about runs are asked for, and what they look like."""

from typing import Any

from rest_framework import serializers

from ftproject.core.errors import InvalidInputError, Problem
from ftproject.core.serializers import StrictIntegerField, StrictSerializer
from training_app.configuration import LARGEST_ID
from training_app.run_reports import DEFAULT_TAIL


class MetricsQuerySerializer(StrictSerializer):
    since_step = StrictIntegerField(default=0, min_value=0, max_value=LARGEST_ID)
    format = serializers.ChoiceField(choices=["json", "csv"], default="json")


class EventsQuerySerializer(StrictSerializer):
    since = StrictIntegerField(default=0, min_value=0, max_value=LARGEST_ID)
    limit = StrictIntegerField(default=500, min_value=1, max_value=500)


class LogQuerySerializer(StrictSerializer):
    tail = StrictIntegerField(
        required=False, min_value=1, max_value=5000, help_text=f"Last lines; default {DEFAULT_TAIL}."
    )
    offset = StrictIntegerField(
        required=False, min_value=0, max_value=2**62, help_text="Instead: what was written after so many bytes."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len(attrs) > 1:
            problem = Problem(code="conflicting_values", message="give tail or offset, not both", field="tail")
            raise InvalidInputError("tail: give tail or offset, not both.", code=problem.code, errors=[problem])
        return attrs


class DiffQuerySerializer(StrictSerializer):
    other = StrictIntegerField(min_value=1, max_value=LARGEST_ID, help_text="The run to compare with.")


class LogSerializer(serializers.Serializer[Any]):
    run_id = serializers.IntegerField()
    log = serializers.CharField(help_text="What the run process wrote.", trim_whitespace=False)
    offset = serializers.IntegerField(help_text="Ask with it for what comes after.")
    ended = serializers.BooleanField(help_text="The run has ended: nothing will come after the end of the log.")


class RunDiffSerializer(serializers.Serializer[Any]):
    run_id = serializers.IntegerField()
    other_id = serializers.IntegerField()
    same_training = serializers.BooleanField(
        help_text="Effective configuration, rows and versions are equal; the results need not be."
    )
    requested = serializers.DictField(help_text="Dotted name -> the value of `run` and of `other`, where they differ.")
    effective = serializers.DictField()
    rows = serializers.DictField(help_text="Dataset hash, mapping, and the rows of both sides of the split.")
    versions = serializers.DictField()
    results = serializers.DictField()
