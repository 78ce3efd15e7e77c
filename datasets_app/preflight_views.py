"""The preflight routes: the report before GPU time, one run, and its stop."""

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from datasets_app import preflight_serializers as s
from datasets_app.preflight_selectors import get_preflight
from datasets_app.preflight_services import preflight_start, preflight_stop, wait_for_preflight
from ftproject.core.views import ApiViewSet

TAGS = ["datasets"]
EXAMPLE = {"sft_config": {"max_steps": 60, "max_seq_length": 1024}, "holdout_fraction": 0.2, "wait_seconds": 60}


class PreflightViewSet(ApiViewSet):
    """What a training would make of the rows, before it starts."""

    lookup_value_regex = r"[0-9]{1,40}"

    @extend_schema(
        operation_id="datasets_preflight_start",
        tags=TAGS,
        request=s.StartPreflightSerializer,
        responses={200: s.PreflightAnswerSerializer, 202: s.PreflightPendingSerializer},
        examples=[OpenApiExample("As for a training", value=EXAMPLE, request_only=True)],
    )
    def create(self, request: Request) -> Response:
        """Looks at every row as this training would; 200 with the report, or 202 when it takes longer than asked."""
        body = self.check_body(s.StartPreflightSerializer, request)
        wait, dataset_id = body.pop("wait_seconds"), body.pop("dataset_id")
        started = preflight_start(dataset_id=dataset_id, body=body)
        run = wait_for_preflight(run=started.run, seconds=wait)
        return Response(s.describe_answer(started), status=200 if run.is_terminal else 202)

    @extend_schema(operation_id="datasets_preflight_retrieve", tags=TAGS, responses=s.PreflightSerializer)
    def retrieve(self, request: Request, pk: str) -> Response:
        """How far one preflight is, or its report."""
        return Response(s.PreflightSerializer(get_preflight(run_id=int(pk[:18]))).data)

    @extend_schema(
        operation_id="datasets_preflight_stop", tags=TAGS, request=None, responses={202: s.PreflightStopSerializer}
    )
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: str) -> Response:
        """Stops it, or takes it out of the queue; no report is made."""
        return Response(s.describe_stop(preflight_stop(run=get_preflight(run_id=int(pk[:18])))), status=202)
