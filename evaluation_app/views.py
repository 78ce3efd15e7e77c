"""The evaluation routes: each validates, calls one service or selector, and answers."""

from collections.abc import Iterator

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from evaluation_app.exports import csv_chunks, json_chunks, jsonl_chunks, opened
from evaluation_app.models import EvaluationRun
from evaluation_app.openapi_examples import IDEMPOTENCY_KEY, LIST_EXAMPLE, METRICS_EXAMPLE, RUN_EXAMPLE, STARTED_EXAMPLE
from evaluation_app.plans import EvaluationRequest
from evaluation_app.run_listing import RunQuery, page_of_runs
from evaluation_app.sample_serializers import SamplePageSerializer, SampleQuerySerializer, SampleSerializer
from evaluation_app.samples import SampleQuery, page_of_samples
from evaluation_app.selectors import get_evaluation_status, get_exportable_run, get_run
from evaluation_app.serializers import (
    RUNS_A_PAGE,
    EvaluationRunDetailSerializer,
    EvaluationRunListSerializer,
    EvaluationRunSerializer,
    EvaluationStartedSerializer,
    EvaluationStatusSerializer,
    EvaluationStopSerializer,
    ExportQuerySerializer,
    RunEvaluationSerializer,
    RunQuerySerializer,
    describe_start,
    describe_stop,
)
from evaluation_app.services import delete_evaluation, start_evaluation, stop_current_evaluation, stop_evaluation
from ftproject.core.departure import while_wanted
from ftproject.core.serializers import DeletedSerializer
from ftproject.core.views import ApiViewSet
from training_app.serializers import read_idempotency_key

EXPORT_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "jsonl": "application/x-ndjson; charset=utf-8",
}


class EvaluationViewSet(ApiViewSet):
    """Start, watch, stop, export."""

    @extend_schema(
        operation_id="evaluation_run",
        tags=["evaluation"],
        parameters=[IDEMPOTENCY_KEY],
        request=RunEvaluationSerializer,
        responses=EvaluationStartedSerializer,
        examples=[RUN_EXAMPLE, METRICS_EXAMPLE, STARTED_EXAMPLE],
    )
    @action(detail=False, methods=["post"], url_path="run")
    def run(self, request: Request) -> Response:
        """Evaluates the base model or an adapter on rows of the dataset; queued when the worker is busy."""
        wanted = EvaluationRequest(**self.check_body(RunEvaluationSerializer, request))
        return Response(
            describe_start(*start_evaluation(request=wanted, idempotency_key=read_idempotency_key(request)))
        )

    @extend_schema(
        operation_id="evaluation_status",
        tags=["evaluation"],
        responses=EvaluationStatusSerializer,
        examples=[OpenApiExample("Running", response_only=True, value={"running": True, "model_type": "base"})],
    )
    @action(detail=False, methods=["get"], url_path="status")
    def status(self, request: Request) -> Response:
        """Whether an evaluation runs or waits, and how far it is."""
        return Response(get_evaluation_status())

    @extend_schema(
        operation_id="evaluation_stop", tags=["evaluation"], request=None, responses=EvaluationStopSerializer
    )
    @action(detail=False, methods=["post"], url_path="stop")
    def stop(self, request: Request) -> Response:
        """Stops the running evaluation after its current batch, else cancels the next waiting one."""
        return Response(describe_stop(stop_current_evaluation()))

    @extend_schema(
        operation_id="evaluation_export",
        tags=["evaluation"],
        parameters=[ExportQuerySerializer],
        responses={
            (200, "text/csv"): OpenApiResponse(OpenApiTypes.STR),
            (200, "application/json"): OpenApiResponse(OpenApiTypes.OBJECT),
            (200, "application/x-ndjson"): OpenApiResponse(OpenApiTypes.STR),
        },
    )
    @action(detail=False, methods=["get"], url_path=r"export/(?P<run_id>[0-9]{1,40})")
    def export(self, request: Request, run_id: str) -> StreamingHttpResponse:
        """One line per dataset row in the run's scope, skipped rows included, results after the row's own columns.

        A result column whose name the dataset has already gets `_eval` behind it. In CSV, cells that a spreadsheet
        would run as a formula get an apostrophe before them unless `raw=1`; JSON and JSON Lines are exact.
        """
        query = self.check_query(ExportQuerySerializer, request)
        run = get_exportable_run(run_id=int(run_id))
        name = f"evaluation_{run.pk}_{run.model_type}.{query['format']}"
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
        chunks = while_wanted(request, opened(export_chunks(run, query["format"], raw=query["raw"])))
        return StreamingHttpResponse(chunks, content_type=EXPORT_TYPES[query["format"]], headers=headers)


def export_chunks(run: EvaluationRun, kind: str, *, raw: bool) -> Iterator[str]:
    if kind == "json":
        return json_chunks(run, facts=EvaluationRunDetailSerializer(run).data)
    return jsonl_chunks(run) if kind == "jsonl" else csv_chunks(run, raw=raw)


class EvaluationRunViewSet(ApiViewSet):
    """Runs and their samples."""

    lookup_value_regex = r"[0-9]{1,40}"

    @extend_schema(
        operation_id="evaluation_runs_list",
        tags=["evaluation"],
        parameters=[RunQuerySerializer],
        responses=EvaluationRunListSerializer,
        examples=[LIST_EXAMPLE],
    )
    def list(self, request: Request) -> Response:
        """Finished runs, newest first; all of them, or a page."""
        query = RunQuery(**self.check_query(RunQuerySerializer, request))
        where, runs = page_of_runs(query, RUNS_A_PAGE)
        place = {"page": where.page, "page_size": where.page_size, "total": where.total}
        shown = EvaluationRunSerializer(runs, many=True).data
        return Response({"runs": shown, **place, "total_pages": where.total_pages})

    @extend_schema(
        operation_id="evaluation_runs_retrieve", tags=["evaluation"], responses=EvaluationRunDetailSerializer
    )
    def retrieve(self, request: Request, pk: str) -> Response:
        """Everything about one run, finished or not."""
        return Response(EvaluationRunDetailSerializer(get_run(run_id=int(pk))).data)

    @extend_schema(operation_id="evaluation_runs_destroy", tags=["evaluation"], responses={200: DeletedSerializer})
    def destroy(self, request: Request, pk: str) -> Response:
        """Deletes a finished run with its samples."""
        delete_evaluation(run=get_run(run_id=int(pk)))
        return Response({"status": "deleted", "id": int(pk)})

    @extend_schema(
        operation_id="evaluation_runs_samples",
        tags=["evaluation"],
        parameters=[SampleQuerySerializer],
        responses=SamplePageSerializer,
        filters=False,
    )
    @action(detail=True, methods=["get"], url_path="samples")
    def samples(self, request: Request, pk: str) -> Response:
        """The run's samples by dataset row, or worst or best first by a metric; equal ones by row."""
        query = self.check_query(SampleQuerySerializer, request)
        page, page_size, run = query.pop("page"), query.pop("page_size"), get_run(run_id=int(pk))
        where, samples = page_of_samples(run=run, query=SampleQuery(**query), page=page, page_size=page_size)
        place = {"page": page, "page_size": page_size, "total": where.total, "total_pages": where.total_pages}
        shown = SampleSerializer(samples, many=True, context={"run": run}).data
        return Response({"samples": shown, **place})

    @extend_schema(
        operation_id="evaluation_runs_stop", tags=["evaluation"], request=None, responses=EvaluationStopSerializer
    )
    @action(detail=True, methods=["post"], url_path="stop")
    def stop(self, request: Request, pk: str) -> Response:
        """Stops this run after its current batch, or takes it out of the queue."""
        return Response(describe_stop(stop_evaluation(run=get_run(run_id=int(pk)))))
