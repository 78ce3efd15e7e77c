"""The routes that tell what became of a run: logged steps, events, log, and the difference from another run."""

from typing import ClassVar

from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ftproject.core.views import ApiViewSet
from training_app import run_report_serializers as s
from training_app.run_reports import diff_runs, metrics_csv, read_log
from training_app.selectors import get_run, list_metrics, list_run_events
from training_app.serializers import EventListSerializer, MetricListSerializer, MetricSerializer

DIFF = {
    "run_id": 1,
    "other_id": 2,
    "same_training": False,
    "requested": {"sft_config.max_steps": {"run": 30, "other": 60}, "holdout_fraction": {"other": 0.2}},
    "effective": {"sft_config.max_steps": {"run": 30, "other": 60}, "holdout_fraction": {"run": 0.0, "other": 0.2}},
    "rows": {"trained_rows": {"run": "0-59", "other": "0-3,5-59"}},
    "versions": {},
    "results": {"loss": {"run": 0.42, "other": 0.31}},
}


class RunReportViewSet(ApiViewSet):
    """Reports about one run."""

    lookup_value_regex = r"[0-9]{1,40}"
    lookup_field: ClassVar[str] = "run_id"

    @extend_schema(
        operation_id="training_runs_metrics",
        tags=["training"],
        parameters=[s.MetricsQuerySerializer],
        responses={
            (200, "application/json"): MetricListSerializer,
            (200, "text/csv"): OpenApiResponse(OpenApiTypes.STR),
        },
    )
    @action(detail=True, methods=["get"])
    def metrics(self, request: Request, run_id: str) -> HttpResponseBase:
        """Every logged step, as JSON or as a CSV file."""
        query = self.check_query(s.MetricsQuerySerializer, request)
        run, since = get_run(run_id=int(run_id)), query["since_step"]
        if query["format"] == "csv":
            headers = {"Content-Disposition": f'attachment; filename="metrics_{run.pk}.csv"'}
            chunks = metrics_csv(run=run, since_step=since)
            return StreamingHttpResponse(chunks, content_type="text/csv; charset=utf-8", headers=headers)
        logged = MetricSerializer(list_metrics(run=run, since_step=since), many=True)
        return Response({"run_id": run.pk, "metrics": logged.data})

    @extend_schema(
        operation_id="training_runs_events",
        tags=["training"],
        parameters=[s.EventsQuerySerializer],
        responses=EventListSerializer,
    )
    @action(detail=True, methods=["get"])
    def events(self, request: Request, run_id: str) -> Response:
        """The stored WebSocket messages of this run."""
        query = self.check_query(s.EventsQuerySerializer, request)
        run = get_run(run_id=int(run_id))
        return Response({"run_id": run.pk, "events": list_run_events(run=run, **query)})

    @extend_schema(
        operation_id="training_runs_log",
        tags=["training"],
        parameters=[s.LogQuerySerializer],
        responses=s.LogSerializer,
    )
    @action(detail=True, methods=["get"])
    def log(self, request: Request, run_id: str) -> Response:
        """The last lines that the run process wrote, or what it wrote after `offset`: ask again with the answer's."""
        query = self.check_query(s.LogQuerySerializer, request)
        run = get_run(run_id=int(run_id))
        part = read_log(run=run, **query)
        return Response({"run_id": run.pk, "log": part.text, "offset": part.offset, "ended": run.is_terminal})

    @extend_schema(
        operation_id="training_runs_diff",
        tags=["training"],
        parameters=[s.DiffQuerySerializer],
        responses=s.RunDiffSerializer,
        examples=[OpenApiExample("What differs", value=DIFF, response_only=True)],
    )
    @action(detail=True, methods=["get"])
    def diff(self, request: Request, run_id: str) -> Response:
        """What differs between this run and another: as asked for, in effect, rows, versions, results."""
        query = self.check_query(s.DiffQuerySerializer, request)
        run, other = get_run(run_id=int(run_id)), get_run(run_id=query["other"])
        return Response(diff_runs(run=run, other=other))
