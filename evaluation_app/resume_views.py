"""The route that takes up an interrupted evaluation."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from evaluation_app.models import EvaluationRun
from evaluation_app.resume import resume_evaluation
from evaluation_app.selectors import get_run
from evaluation_app.serializers import EvaluationStartedSerializer, describe_start
from ftproject.core.serializers import StrictSerializer
from ftproject.core.views import ApiViewSet
from training_app.serializers import read_idempotency_key

KEY = OpenApiParameter(
    "Idempotency-Key", str, OpenApiParameter.HEADER, description="The same key once more changes nothing."
)


class EvaluationResumeSerializer(StrictSerializer):
    """The run knows what it was to do."""


class EvaluationResumedSerializer(EvaluationStartedSerializer):
    current = serializers.IntegerField(help_text="Rows that are done already.")
    total = serializers.IntegerField(allow_null=True)


RESUMED = {
    "status": "started",
    "model_type": "base",
    "run_id": 3,
    "model_name": "tiny-qwen3-vl",
    "current": 60,
    "total": 100,
}


class EvaluationResumeViewSet(ApiViewSet):
    """Takes up a run that was stopped, killed or failed."""

    lookup_value_regex = r"[0-9]{1,40}"

    @extend_schema(
        operation_id="evaluation_runs_resume",
        tags=["evaluation"],
        parameters=[KEY],
        request=EvaluationResumeSerializer,
        responses={202: EvaluationResumedSerializer},
        examples=[OpenApiExample("Going on after 60 rows", value=RESUMED, response_only=True)],
    )
    @action(detail=True, methods=["post"], url_path="resume")
    def resume(self, request: Request, pk: str) -> Response:
        """Puts the run back into the queue; its samples stay, and exactly the missing rows are computed."""
        self.check_body(EvaluationResumeSerializer, request)
        key = read_idempotency_key(request)
        return Response(describe_resumed(*resume_evaluation(run=get_run(run_id=int(pk)), idempotency_key=key)), 202)


def describe_resumed(run: EvaluationRun, position: int | None) -> dict[str, Any]:
    return {**describe_start(run, position), "current": run.current, "total": run.total}
