"""The dataset routes: upload, columns, mapping, info, previews, and the list of all datasets."""

from typing import Any

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from datasets_app import examples, selectors, services
from datasets_app import serializers as s
from datasets_app.archives import images_upload
from datasets_app.models import Dataset
from datasets_app.prefetch_serializers import ArchiveReportSerializer, ArchiveUploadSerializer, describe_report
from datasets_app.uploads import UploadParser, uploaded_file
from ftproject.core.errors import InvalidInputError
from ftproject.core.pagination import Page
from ftproject.core.serializers import DeletedSerializer
from ftproject.core.views import ApiViewSet
from ftproject.engine.conversations import Conversation, messages_of

TAGS = ["datasets"]


class DatasetViewSet(ApiViewSet):
    """Routes that speak of "the" dataset take an optional dataset_id; the default is the current one."""

    lookup_value_regex = r"[0-9]{1,40}"

    @extend_schema(tags=TAGS, responses=s.DatasetListSerializer)
    def list(self, request: Request) -> Response:
        """All uploads, newest first."""
        datasets = selectors.list_datasets()
        return Response({"datasets": s.DatasetResponseSerializer(datasets, many=True).data})

    @extend_schema(tags=TAGS, responses=s.UploadResponseSerializer)
    def retrieve(self, request: Request, pk: str) -> Response:
        """One dataset with its first five rows."""
        return Response(described(selectors.get_dataset(dataset_id=int(pk[:19]))))

    @extend_schema(tags=TAGS, responses={200: DeletedSerializer})
    def destroy(self, request: Request, pk: str) -> Response:
        """Deletes a dataset with its mappings and rows; 409 while a run refers to it."""
        dataset = selectors.get_dataset(dataset_id=int(pk[:19]))
        return Response({"status": "deleted", "id": services.dataset_delete(dataset=dataset)})

    @extend_schema(tags=TAGS, request=None, responses=s.UploadResponseSerializer)
    @action(detail=True, methods=["post"])
    def activate(self, request: Request, pk: str) -> Response:
        """Makes an earlier upload the current dataset."""
        dataset = selectors.get_dataset(dataset_id=int(pk[:19]))
        return Response(described(services.dataset_activate(dataset=dataset)))

    @extend_schema(
        tags=TAGS,
        request={"multipart/form-data": ArchiveUploadSerializer},
        responses=ArchiveReportSerializer,
        examples=[OpenApiExample("images", value=examples.ARCHIVE, response_only=True)],
    )
    @action(detail=True, methods=["post"], parser_classes=[UploadParser])
    def images(self, request: Request, pk: str) -> Response:
        """Adds a zip of images, whose paths the dataset's image cells may then name; nothing of it becomes a path."""
        dataset = selectors.get_dataset(dataset_id=int(pk[:19]))
        return Response(describe_report(dataset, images_upload(dataset=dataset, file=uploaded_file(request))))

    @extend_schema(
        tags=TAGS,
        request={"multipart/form-data": s.UploadSerializer},
        responses=s.UploadResponseSerializer,
        examples=[OpenApiExample("upload", value=examples.UPLOAD, response_only=True)],
    )
    @action(detail=False, methods=["post"], parser_classes=[UploadParser])
    def upload(self, request: Request) -> Response:
        """Stores a CSV, TSV, JSON Lines or Parquet file and makes it current; every cell stays text, verbatim."""
        file = uploaded_file(request)
        return Response(described(services.dataset_upload(file=file, filename=file.name or "dataset")))

    @extend_schema(
        tags=TAGS,
        parameters=[s.DatasetQuerySerializer],
        responses=s.ColumnsResponseSerializer,
        examples=[OpenApiExample("columns", value=examples.COLUMNS, response_only=True)],
    )
    @action(detail=False, methods=["get"])
    def columns(self, request: Request) -> Response:
        """The column names in the order of the file."""
        dataset = self.named_dataset(request)
        return Response({"columns": dataset.columns, "dataset_id": dataset.pk})

    @extend_schema(
        tags=TAGS,
        parameters=[s.DatasetQuerySerializer],
        responses=s.InfoResponseSerializer,
        examples=[OpenApiExample("info", value=examples.INFO, response_only=True)],
    )
    @action(detail=False, methods=["get"])
    def info(self, request: Request) -> Response:
        """The facts of the dataset; `loaded` is false before any upload."""
        dataset_id = self.check_query(s.DatasetQuerySerializer, request).get("dataset_id")
        if dataset_id is None and selectors.current_dataset() is None:
            return Response({"loaded": False, **dict.fromkeys(s.DATASET_FIELDS)})
        dataset = selectors.get_dataset(dataset_id=dataset_id)
        return Response({"loaded": True, **s.DatasetResponseSerializer(dataset).data})

    @extend_schema(
        methods=["GET"],
        description="The newest version of the mapping; 404 with a suggestion before any was set.",
        tags=TAGS,
        parameters=[s.DatasetQuerySerializer],
        responses=s.MappingResponseSerializer,
    )
    @extend_schema(
        methods=["POST"],
        description="Saves what each column is for as a new version; the same mapping again keeps its version.",
        tags=TAGS,
        parameters=[s.DatasetQuerySerializer],
        request=s.MappingSerializer,
        responses=s.MappingResponseSerializer,
        examples=[OpenApiExample("mapping", value=examples.MAPPING, request_only=True)],
    )
    @action(detail=False, methods=["get", "post"])
    def mapping(self, request: Request) -> Response:
        if request.method == "POST":
            body = self.check_body(s.MappingSerializer, request)
            dataset = self.named_dataset(request, body)
            return Response(s.MappingResponseSerializer(services.mapping_set(dataset=dataset, **body)).data)
        mapping = selectors.get_mapping(dataset=self.named_dataset(request))
        return Response(s.MappingResponseSerializer(mapping).data)

    @extend_schema(
        tags=TAGS,
        parameters=[s.DatasetQuerySerializer],
        request=s.PreviewSerializer,
        responses=s.PreviewResponseSerializer,
        examples=[OpenApiExample("preview", value=examples.PREVIEW, request_only=True)],
    )
    @action(detail=False, methods=["post"])
    def preview(self, request: Request) -> Response:
        """One page of rows; past the end it is empty."""
        body = self.check_body(s.PreviewSerializer, request)
        dataset = self.named_dataset(request, body)
        page = Page(body["page"], body["page_size"], dataset.num_rows)
        rows = selectors.read_rows(dataset=dataset, start=page.offset, count=page.page_size)
        totals = {"total_rows": page.total, "total_pages": page.total_pages, "dataset_id": dataset.pk}
        return Response({"rows": rows, "page": page.page, "page_size": page.page_size, **totals})

    @extend_schema(tags=TAGS, parameters=[s.ConversationsQuerySerializer], responses=s.ConversationsResponseSerializer)
    @action(detail=False, methods=["get"], url_path="preview/conversations")
    def conversations(self, request: Request) -> Response:
        """Rows as the conversations that training and evaluation see, skipped ones marked."""
        query = self.check_query(s.ConversationsQuerySerializer, request)
        dataset = selectors.get_dataset(dataset_id=query.get("dataset_id"))
        mapping = selectors.get_mapping(dataset=dataset)
        start, count = query["start"], query["count"]
        found = selectors.read_conversations(dataset=dataset, mapping=mapping, start=start, count=count)
        totals = {"count": len(found), "total": dataset.num_rows, "dataset_id": dataset.pk}
        return Response({"conversations": [shown(conversation) for conversation in found], "start": start, **totals})

    def named_dataset(self, request: Request, body: dict[str, Any] | None = None) -> Dataset:
        """The dataset that query or body name; takes the id out of the body."""
        asked = self.check_query(s.DatasetQuerySerializer, request).get("dataset_id")
        in_body = (body or {}).pop("dataset_id", None)
        if asked is not None and in_body is not None and asked != in_body:
            raise InvalidInputError(f"dataset_id is {asked} in the query and {in_body} in the body.")
        return selectors.get_dataset(dataset_id=asked if in_body is None else in_body)


def described(dataset: Dataset) -> dict[str, Any]:
    """The facts of a dataset with its first rows."""
    rows = selectors.read_rows(dataset=dataset, start=0, count=selectors.SAMPLE_ROWS)
    return {**s.DatasetResponseSerializer(dataset).data, "sample_rows": rows}


def shown(conversation: Conversation) -> dict[str, Any]:
    return {
        "index": conversation.index,
        "messages": messages_of(conversation, with_response=True),
        "skipped": conversation.skipped,
        "skipped_reason": conversation.skipped_reason,
    }
