"""The routes of comparisons: each validates, asks for the comparison, and answers."""

from typing import Any

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from evaluation_app.comparison.exports import export_response
from evaluation_app.comparison.report import CompareOptions, compare_runs, report_of
from evaluation_app.comparison.rows import page_of_pairs
from evaluation_app.comparison.serializers import (
    COMPARE_ANSWER,
    CompareExportSerializer,
    CompareRunsSerializer,
    ComparisonTableSerializer,
    ComparisonWithRowsSerializer,
)
from ftproject.core.views import ApiViewSet

OPTIONS = ("metric", "rows", "confidence_level", "num_resamples", "seed")
EXAMPLE = OpenApiExample("Base against adapter", request_only=True, value={"baseline_run_id": 1, "candidate_run_id": 2})


class ComparisonViewSet(ApiViewSet):
    """Two runs over the same rows, and what their difference proves."""

    @extend_schema(
        operation_id="evaluation_compare",
        tags=["evaluation"],
        request=CompareRunsSerializer,
        responses={200: COMPARE_ANSWER},
        examples=[EXAMPLE],
    )
    def create(self, request: Request) -> Response:
        """Pairs the rows of two finished runs: fixed, broken, exact test, intervals, verdict. Stores nothing."""
        body = self.check_body(CompareRunsSerializer, request)
        if body["candidate_run_ids"] is not None:
            return Response(table_of(body))
        (comparison,) = compare_runs(body["baseline_run_id"], [body["candidate_run_id"]], options_of(body))
        where, pairs = page_of_pairs(
            comparison.paired, transition=body["transition"], page=body["page"], page_size=body["page_size"]
        )
        listed = {"pairs": pairs, "transition": body["transition"], "page": where.page, "page_size": where.page_size}
        answer = {**report_of(comparison), **listed, "total": where.total, "total_pages": where.total_pages}
        return Response(ComparisonWithRowsSerializer(answer).data)

    @extend_schema(
        operation_id="evaluation_compare_export",
        tags=["evaluation"],
        parameters=[CompareExportSerializer],
        responses={
            (200, "text/csv"): OpenApiResponse(OpenApiTypes.STR),
            (200, "application/json"): OpenApiResponse(OpenApiTypes.OBJECT),
            (200, "text/html"): OpenApiResponse(OpenApiTypes.STR),
        },
    )
    @action(detail=False, methods=["get"], url_path="export")
    def export(self, request: Request) -> StreamingHttpResponse:
        """The joined rows: the dataset's columns, both answers, both scores, transition, seen; HTML is one page."""
        query = self.check_query(CompareExportSerializer, request)
        (comparison,) = compare_runs(query["baseline_run_id"], [query["candidate_run_id"]], options_of(query))
        return export_response(
            comparison,
            file_format=query["format"],
            transition=query["transition"],
            raw=query["raw"],
            max_rows=query["max_rows"],
        )


def options_of(values: dict[str, Any]) -> CompareOptions:
    return CompareOptions(**{name: values[name] for name in OPTIONS})


def table_of(body: dict[str, Any]) -> Any:
    found = compare_runs(body["baseline_run_id"], body["candidate_run_ids"], options_of(body))
    answer = {"correction": "holm", "comparisons": [report_of(one) for one in found]}
    return ComparisonTableSerializer(answer).data
