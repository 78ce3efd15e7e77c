"""The routes of the system: health, GPU, what is loaded and unloading it, and the audit trail."""

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ftproject.core.pagination import Page
from ftproject.core.views import ApiViewSet
from ftproject.engine.gpu import gpu_stats
from ftproject.system import selectors, serializers
from inference_app.model_server import model_server

GPU = {"available": True, "device_name": "NVIDIA RTX 5090", "memory_total_mb": 32768}
NOT_LOADED = {"loaded": False, "mode": None, "adapter": None}

AUDIT_ENTRY = {
    "id": 3,
    "at": "2026-11-22T20:15:00.123456Z",
    "caller_kind": "key",
    "caller": "qwen3vl_1a2b3c4d",
    "method": "POST",
    "route": "training-start",
    "path": "/api/training/start",
    "ids": {"run_id": 7},
    "status": 200,
}
AUDIT_PAGE = {"entries": [AUDIT_ENTRY], "page": 1, "page_size": 20, "total": 1, "total_pages": 1}


class SystemViewSet(ApiViewSet):
    """The installation itself."""

    @extend_schema(
        operation_id="system_health",
        tags=["system"],
        responses=serializers.HealthSerializer,
        examples=[OpenApiExample("Well", value={"status": "ok"}, response_only=True)],
    )
    @action(detail=False, methods=["get"])
    def health(self, request: Request) -> Response:
        """Whether the server answers, and what it works with."""
        return Response(selectors.get_health())

    @extend_schema(
        operation_id="system_gpu",
        tags=["system"],
        responses=serializers.GpuSerializer,
        examples=[OpenApiExample("One GPU", value=GPU, response_only=True)],
    )
    @action(detail=False, methods=["get"])
    def gpu(self, request: Request) -> Response:
        """The GPUs' state; without one `available` is false and the facts are null."""
        return Response(gpu_stats())

    @extend_schema(
        operation_id="system_model_status",
        tags=["system"],
        responses=serializers.ModelStatusSerializer,
        examples=[OpenApiExample("Nothing loaded", value=NOT_LOADED, response_only=True)],
    )
    @action(detail=False, methods=["get"], url_path="model-status")
    def model_status(self, request: Request) -> Response:
        """What the model server has loaded for inference."""
        return Response(selectors.get_model_status())

    @extend_schema(
        operation_id="system_unload_model",
        tags=["system"],
        request=None,
        responses=serializers.UnloadedSerializer,
        examples=[OpenApiExample("Unloaded", value={"status": "unloaded"}, response_only=True)],
    )
    @action(detail=False, methods=["post"], url_path="unload-model")
    def unload_model(self, request: Request) -> Response:
        """Ends the model server and frees the memory; the same answer when nothing was loaded."""
        model_server.unload()
        return Response({"status": "unloaded"})

    @extend_schema(
        operation_id="system_audit",
        tags=["system"],
        parameters=[serializers.AuditQuerySerializer],
        responses=serializers.AuditPageSerializer,
        examples=[OpenApiExample("One write", value=AUDIT_PAGE, response_only=True)],
    )
    @action(detail=False, methods=["get"])
    def audit(self, request: Request) -> Response:
        """Who wrote what and how it ended, newest first."""
        query = self.check_query(serializers.AuditQuerySerializer, request)
        entries = selectors.find_audit_entries(caller_kind=query.get("caller_kind"), caller=query.get("caller"))
        page = Page(query["page"], query["page_size"], entries.count())
        return Response(serializers.describe_audit_page(entries, page))
