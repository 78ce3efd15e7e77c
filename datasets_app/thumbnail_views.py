"""The pictures of a dataset row: which there are, and each as a small JPEG."""

from typing import Any

from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from datasets_app import thumbnail_serializers as s
from datasets_app import thumbnails
from datasets_app.models import ColumnMapping, Dataset
from datasets_app.selectors import get_dataset
from ftproject.core.errors import NotFoundError
from ftproject.core.views import ApiViewSet

TAGS = ["datasets"]
SHOWN_CELL = 200
# What comes from a user's file is pixels made anew, and still nothing that a browser may run, guess at or lend on.
HEADERS = {
    "Cache-Control": "private, max-age=3600",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}
ROW = [
    OpenApiParameter("dataset_id", int, OpenApiParameter.PATH),
    OpenApiParameter("index", int, OpenApiParameter.PATH, description="The row, counted from 0."),
]


class RowImageViewSet(ApiViewSet):
    """Nothing is fetched here: what a prefetch or a run did not bring is 404 with the reason."""

    lookup_value_regex = r"[0-9]{1,40}"

    @extend_schema(
        operation_id="datasets_rows_images_list",
        tags=TAGS,
        parameters=[*ROW, s.RowImagesQuerySerializer],
        responses=s.RowImageListSerializer,
    )
    def list(self, request: Request, dataset_id: str, index: str) -> Response:
        """The images of one row as training sees them, and whether each is on this machine."""
        query = self.check_query(s.RowImagesQuerySerializer, request)
        dataset, mapping = place_of(dataset_id, query["mapping_version"])
        row = int(index[:18])
        images = thumbnails.images_of_row(dataset=dataset, mapping=mapping, index=row)
        shown = [described(dataset, mapping, row, image) for image in images]
        return Response({"dataset_id": dataset.pk, "index": row, "images": shown})

    @extend_schema(
        operation_id="datasets_rows_images_retrieve",
        tags=TAGS,
        parameters=[*ROW, OpenApiParameter("id", int, OpenApiParameter.PATH), s.ThumbnailQuerySerializer],
        responses={(200, "image/jpeg"): OpenApiResponse(OpenApiTypes.BINARY)},
    )
    def retrieve(self, request: Request, dataset_id: str, index: str, pk: str) -> HttpResponseBase:
        """One image as a JPEG at most `size` pixels wide and high; never the file itself."""
        query = self.check_query(s.ThumbnailQuerySerializer, request)
        dataset, mapping = place_of(dataset_id, query["mapping_version"])
        row, number, size = int(index[:18]), int(pk[:18]), query["size"]
        image = thumbnails.image_of_row(dataset=dataset, mapping=mapping, index=row, number=number)
        cached = thumbnails.cached_image(dataset=dataset, image=image)
        headers = {**HEADERS, "ETag": cached.etag(size)}
        unchanged = get_conditional_response(request._request, etag=headers["ETag"])
        if unchanged is not None:
            return HttpResponse(status=304, headers=headers)
        data = thumbnails.thumbnail(cached=cached, image=image, size=size)
        name = f'inline; filename="row_{row}_image_{number}.jpg"'
        return HttpResponse(data, content_type="image/jpeg", headers={**headers, "Content-Disposition": name})


def place_of(dataset_id: str, version: int | None) -> tuple[Dataset, ColumnMapping]:
    dataset = get_dataset(dataset_id=int(dataset_id[:18]))
    return dataset, thumbnails.mapping_version(dataset=dataset, version=version)


def described(dataset: Dataset, mapping: ColumnMapping, row: int, image: thumbnails.RowImage) -> dict[str, Any]:
    code = message = None
    try:
        thumbnails.cached_image(dataset=dataset, image=image)
    except NotFoundError as exc:
        code, message = exc.errors[0].code, exc.errors[0].message
    url = thumbnails.thumbnail_url(dataset_id=dataset.pk, index=row, number=image.number, version=mapping.version)
    cell = image.cell if len(image.cell) <= SHOWN_CELL else f"{image.cell[:SHOWN_CELL]}…"
    facts = {"number": image.number, "column": image.column, "cell": cell, "available": code is None}
    return {**facts, "code": code, "message": message, "thumbnail": url}
