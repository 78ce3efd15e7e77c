"""The route that shows a row token by token, for a start body, a run, or all defaults."""

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from ftproject.core.views import ApiViewSet
from training_app.token_preview import openapi_preview_schema, planned_preview, preview_tokens
from training_app.token_preview_serializers import TokenPreviewQuerySerializer, TokenPreviewSerializer, read_query

BODY = {"row": 3, "model_config_data": {"max_seq_length": 1024, "max_pixels": 262144}}


class TokenPreviewViewSet(ApiViewSet):
    """A row as training sees it."""

    @extend_schema(
        operation_id="training_token_preview",
        tags=["training"],
        parameters=[TokenPreviewQuerySerializer],
        responses=TokenPreviewSerializer,
    )
    def list(self, request: Request) -> Response:
        """One row with the default settings, or as a run of the past saw it."""
        options, training = read_query(self.check_query(TokenPreviewQuerySerializer, request))
        return Response(preview_tokens(training=training, options=options))

    @extend_schema(
        operation_id="training_token_preview_of_body",
        tags=["training"],
        request={"application/json": openapi_preview_schema()},
        responses={200: TokenPreviewSerializer},
        examples=[OpenApiExample("With smaller images", value=BODY, request_only=True)],
    )
    def create(self, request: Request) -> Response:
        """One row as a training of this start body would see it; starts nothing."""
        options, training = planned_preview(dict(request.data))
        return Response(preview_tokens(training=training, options=options))
