"""The routes of merges: start one from an adapter, watch it, stop it, delete it with its model."""

from typing import ClassVar

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ftproject.core.pagination import PageSerializer
from ftproject.core.serializers import DeletedSerializer
from ftproject.core.views import ApiViewSet
from training_app import merge_serializers as s
from training_app.merge_selectors import get_merge, list_merges
from training_app.merge_services import merge_delete, merge_start, merge_stop
from training_app.selectors import find_adapter
from training_app.serializers import read_idempotency_key
from training_app.views import IDEMPOTENCY_KEY

TAGS = ["adapters"]
STARTED = {
    "status": "started",
    "merge_id": 1,
    "adapter": "adapter_20260215_143022",
    "model_name": "adapter_20260215_143022-merged",
    "warnings": [],
}


class AdapterMergeViewSet(ApiViewSet):
    """Starts the merge of one adapter."""

    lookup_field: ClassVar[str] = "name"
    lookup_value_regex = r"[^/]+"

    @extend_schema(
        operation_id="training_adapters_merge",
        tags=TAGS,
        parameters=[IDEMPOTENCY_KEY],
        request=s.StartMergeSerializer,
        responses={202: s.MergeStartedSerializer},
        examples=[OpenApiExample("Started", value=STARTED, response_only=True, status_codes=["202"])],
    )
    @action(detail=True, methods=["post"])
    def merge(self, request: Request, name: str) -> Response:
        """Merges the adapter into its base, in the queue: a 16-bit model that can be named as `model_name`."""
        body = self.check_body(s.StartMergeSerializer, request)
        adapter, key = find_adapter(reference=name), read_idempotency_key(request)
        started = merge_start(adapter=adapter, model_name=body["model_name"], idempotency_key=key)
        return Response(s.describe_merge_start(started), status=202)


class MergeViewSet(ApiViewSet):
    """The history of merges."""

    lookup_field: ClassVar[str] = "merge_id"
    lookup_value_regex = r"[0-9]{1,40}"

    @extend_schema(
        operation_id="training_merges_list", tags=TAGS, parameters=[PageSerializer], responses=s.MergeListSerializer
    )
    def list(self, request: Request) -> Response:
        """All merges, newest first."""
        return Response(s.describe_merges(*list_merges(**self.check_query(PageSerializer, request))))

    @extend_schema(operation_id="training_merges_retrieve", tags=TAGS, responses=s.MergeSerializer)
    def retrieve(self, request: Request, merge_id: str) -> Response:
        """How far one merge is, or what it made."""
        return Response(s.MergeSerializer(get_merge(merge_id=int(merge_id))).data)

    @extend_schema(
        operation_id="training_merges_stop", tags=TAGS, request=None, responses={202: s.MergeStoppedSerializer}
    )
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, merge_id: str) -> Response:
        """Stops this merge, of which nothing is kept, or takes it out of the queue."""
        return Response(s.describe_merge_stop(merge_stop(merge=get_merge(merge_id=int(merge_id)))), status=202)

    @extend_schema(operation_id="training_merges_delete", tags=TAGS, responses={200: DeletedSerializer})
    def destroy(self, request: Request, merge_id: str) -> Response:
        """Deletes a merge that has ended, and the model that it made."""
        merge_delete(merge=get_merge(merge_id=int(merge_id)))
        return Response({"status": "deleted", "id": int(merge_id)})
