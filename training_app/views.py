"""The routes of training: start, status, stop, runs and adapters."""

from typing import Any, ClassVar

from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ftproject.core.serializers import DeletedSerializer
from ftproject.core.views import ApiViewSet
from training_app import adapter_services, selectors, serializers, services
from training_app.configuration import openapi_start_schema, start_schema
from training_app.openapi_examples import ADAPTERS, START, STATUS
from training_app.preflight import dry_run_preflight
from training_app.reproduction import reproduction

IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="The same key with the same body answers the same run; with another body it is 409.",
)


class TrainingViewSet(ApiViewSet):
    """Start, watch and stop the training run."""

    @extend_schema(
        operation_id="training_start",
        tags=["training"],
        parameters=[IDEMPOTENCY_KEY],
        request={"application/json": openapi_start_schema()},
        responses=serializers.StartedSerializer,
        examples=[
            OpenApiExample("The document's start", value=START, request_only=True),
            OpenApiExample("All defaults", value={}, request_only=True),
        ],
    )
    @action(detail=False, methods=["post"])
    def start(self, request: Request) -> Response:
        """Starts a training run, or queues it behind the run that holds the GPU."""
        body = dict(request.data)
        if body.get("dry_run") is True:
            plan = services.plan_training(body=body)
            return Response(serializers.describe_plan(plan) | {"preflight": dry_run_preflight(plan=plan, body=body)})
        key = serializers.read_idempotency_key(request)
        return Response(serializers.describe_start(services.start_training(body=body, idempotency_key=key)))

    @extend_schema(
        operation_id="training_status",
        tags=["training"],
        responses=serializers.TrainingStatusSerializer,
        examples=[OpenApiExample("While it trains", value=STATUS, response_only=True)],
    )
    @action(detail=False, methods=["get"])
    def status(self, request: Request) -> Response:
        """The running run, else the newest one, else `idle`."""
        return Response(selectors.get_training_status())

    @extend_schema(
        operation_id="training_stop",
        tags=["training"],
        request=None,
        responses=serializers.StoppedSerializer,
        examples=[OpenApiExample("Stopping", value={"status": "stopping"}, response_only=True)],
    )
    @action(detail=False, methods=["post"])
    def stop(self, request: Request) -> Response:
        """Finishes the current step and saves the adapter; cancels the oldest waiting run when none is active."""
        return Response(serializers.describe_stop(services.stop_training()))

    @extend_schema(operation_id="training_schema", tags=["training"], responses={200: OpenApiTypes.OBJECT})
    @action(detail=False, methods=["get"], url_path="schema", url_name="schema")
    def start_body(self, request: Request) -> Response:
        """The JSON Schema of the start body, with all defaults."""
        return Response(start_schema())


class TrainingRunViewSet(ApiViewSet):
    """The history of training runs."""

    lookup_value_regex = r"[0-9]{1,40}"
    lookup_field: ClassVar[str] = "run_id"

    @extend_schema(
        operation_id="training_runs_list",
        tags=["training"],
        parameters=[serializers.RunListQuerySerializer],
        responses=serializers.RunListSerializer,
    )
    def list(self, request: Request) -> Response:
        """All runs, newest first; `status` and `dataset_id` choose among them."""
        page, runs = selectors.list_runs(**self.check_query(serializers.RunListQuerySerializer, request))
        body = {"runs": [selectors.run_facts(run) for run in runs], "page": page.page, "page_size": page.page_size}
        return Response(body | {"total": page.total, "total_pages": page.total_pages})

    @extend_schema(operation_id="training_runs_retrieve", tags=["training"], responses=serializers.RunDetailSerializer)
    def retrieve(self, request: Request, run_id: str) -> Response:
        """One run with the body it was started with, its effective configuration, and how to make it again."""
        run = selectors.get_run(run_id=int(run_id))
        recipe = reproduction(run, base_url=request.build_absolute_uri("/").rstrip("/"))
        return Response(selectors.run_details(run) | {"reproduce": recipe})

    @extend_schema(operation_id="training_runs_delete", tags=["training"], responses={200: DeletedSerializer})
    def destroy(self, request: Request, run_id: str) -> Response:
        """Deletes a run that has ended and whose adapter is gone."""
        services.delete_run(run=selectors.get_run(run_id=int(run_id)))
        return Response({"status": "deleted", "id": int(run_id)})

    @extend_schema(
        operation_id="training_runs_stop",
        tags=["training"],
        request=None,
        responses={202: serializers.StoppedSerializer},
    )
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, run_id: str) -> Response:
        """Stops this run gracefully, or takes it out of the queue."""
        run = services.stop_training(run=selectors.get_run(run_id=int(run_id)))
        return Response(serializers.describe_stop(run), status=202)


class AdapterViewSet(ApiViewSet):
    """The adapters that training made."""

    lookup_field: ClassVar[str] = "name"
    lookup_value_regex = r"[^/]+"

    @extend_schema(
        operation_id="training_adapters_list",
        tags=["adapters"],
        responses=serializers.AdapterListSerializer,
        examples=[OpenApiExample("Oldest first", value=ADAPTERS, response_only=True)],
    )
    def list(self, request: Request) -> Response:
        """All adapters, oldest first."""
        adapters = serializers.AdapterSerializer(selectors.list_adapters(), many=True)
        return Response({"adapters": adapters.data})

    @extend_schema(
        operation_id="training_adapters_retrieve",
        tags=["adapters"],
        responses=serializers.AdapterPageSerializer,
    )
    def retrieve(self, request: Request, name: str) -> Response:
        """One adapter, with how it was made."""
        return Response(serializers.AdapterPageSerializer(selectors.find_adapter(reference=name)).data)

    @extend_schema(operation_id="training_adapters_delete", tags=["adapters"], responses={200: DeletedSerializer})
    def destroy(self, request: Request, name: str) -> Response:
        """Deletes an adapter that no evaluation refers to."""
        adapter = selectors.find_adapter_row(reference=name)
        body: dict[str, Any] = {"status": "deleted", "id": adapter.pk}
        adapter_services.delete_adapter(adapter=adapter)
        return Response(body)

    @extend_schema(
        operation_id="training_adapters_download",
        tags=["adapters"],
        responses={(200, "application/zip"): OpenApiResponse(OpenApiTypes.BINARY, "The adapter's folder.")},
    )
    @action(detail=True, methods=["get"])
    def download(self, request: Request, name: str) -> HttpResponseBase:
        """The adapter's folder as a zip, streamed."""
        adapter = selectors.find_adapter(reference=name)
        response = StreamingHttpResponse(
            adapter_services.iter_adapter_zip(adapter.path), content_type="application/zip"
        )
        response["Content-Disposition"] = f'attachment; filename="{adapter.name}.zip"'
        return response
