"""The prefetch routes: start, watch, stop, and the list of images that could not be got."""

from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from datasets_app import prefetch_selectors as selectors
from datasets_app import prefetch_serializers as s
from datasets_app.prefetch_services import prefetch_start, prefetch_stop
from ftproject.core.pagination import PageSerializer
from ftproject.core.views import ApiViewSet

TAGS = ["datasets"]
STARTED = OpenApiExample(
    "Started", response_only=True, status_codes=["202"], value={"status": "started", "run_id": 1, "dataset_id": 1}
)


class PrefetchViewSet(ApiViewSet):
    """Every image of a dataset into the cache, before any GPU time."""

    lookup_value_regex = r"[0-9]{1,40}"

    @extend_schema(
        operation_id="datasets_images_prefetch_start",
        tags=TAGS,
        request=s.StartPrefetchSerializer,
        responses={202: s.PrefetchStartedSerializer},
        examples=[STARTED],
    )
    def create(self, request: Request) -> Response:
        """Fetches every image that the cache lacks, beside training and evaluation; again to take up where it ended."""
        return Response(
            s.describe_start(*prefetch_start(**self.check_body(s.StartPrefetchSerializer, request))), status=202
        )

    @extend_schema(
        operation_id="datasets_images_prefetch_list",
        tags=TAGS,
        parameters=[s.PrefetchQuerySerializer],
        responses=s.PrefetchListSerializer,
    )
    def list(self, request: Request) -> Response:
        """All prefetch runs, newest first."""
        query = self.check_query(s.PrefetchQuerySerializer, request)
        page, runs = selectors.page_of_prefetches(
            dataset_id=query.get("dataset_id"), page=query["page"], page_size=query["page_size"]
        )
        return Response({"runs": s.PrefetchSerializer(runs, many=True).data, **s.describe_page(page)})

    @extend_schema(operation_id="datasets_images_prefetch_retrieve", tags=TAGS, responses=s.PrefetchSerializer)
    def retrieve(self, request: Request, pk: str) -> Response:
        """How far one run is, or how it ended."""
        return Response(s.PrefetchSerializer(selectors.get_prefetch(run_id=int(pk[:18]))).data)

    @extend_schema(
        operation_id="datasets_images_prefetch_stop", tags=TAGS, request=None, responses=s.PrefetchStopSerializer
    )
    @action(detail=True, methods=["post"], url_path="stop")
    def stop(self, request: Request, pk: str) -> Response:
        """Stops this run; what it fetched stays in the cache."""
        return Response(s.describe_stop(prefetch_stop(run=selectors.get_prefetch(run_id=int(pk[:18])))))

    @extend_schema(
        operation_id="datasets_images_prefetch_bad_rows",
        tags=TAGS,
        parameters=[PageSerializer],
        responses=s.BadImagePageSerializer,
    )
    @action(detail=True, methods=["get"], url_path="bad_rows")
    def bad_rows(self, request: Request, pk: str) -> Response:
        """The images that could not be got: row, column, URL and why."""
        query = self.check_query(PageSerializer, request)
        page, found = selectors.page_of_bad_images(run=selectors.get_prefetch(run_id=int(pk[:18])), **query)
        return Response({"bad_rows": s.BadImageSerializer(found, many=True).data, **s.describe_page(page)})

    @extend_schema(
        operation_id="datasets_images_prefetch_bad_rows_csv",
        tags=TAGS,
        responses={(200, "text/csv"): OpenApiResponse(OpenApiTypes.STR)},
    )
    @action(detail=True, methods=["get"], url_path=r"bad_rows\.csv")
    def bad_rows_csv(self, request: Request, pk: str) -> StreamingHttpResponse:
        """The same as a CSV file; cells that a spreadsheet would run as a formula get an apostrophe before them."""
        run = selectors.get_prefetch(run_id=int(pk[:18]))
        headers = {
            "Content-Disposition": f'attachment; filename="bad_rows_{run.pk}.csv"',
            "X-Content-Type-Options": "nosniff",
        }
        chunks = selectors.bad_rows_csv(run=run)
        return StreamingHttpResponse(chunks, content_type="text/csv; charset=utf-8", headers=headers)
