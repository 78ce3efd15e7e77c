"""The routes under /v1 in OpenAI's format, errors included, so that its clients work unchanged."""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from ftproject.core.departure import departure_of
from ftproject.core.errors import ProductError
from ftproject.core.problem import describe_exception, openai_error
from ftproject.core.views import ApiViewSet
from inference_app import openai_serializers, openai_services

DONE = b"data: [DONE]\n\n"


class ChatCompletionViewSet(ApiViewSet):
    """Chat completions by the base or an adapter."""

    @extend_schema(
        operation_id="openai_chat_completions",
        tags=["openai"],
        request=openai_serializers.ChatCompletionRequestSerializer,
        responses={
            (200, "application/json"): openai_serializers.ChatCompletionSerializer,
            (200, "text/event-stream"): OpenApiResponse(OpenApiTypes.STR, "With stream true: server-sent chunks."),
        },
        examples=[OpenApiExample("A picture", value=openai_serializers.CHAT, request_only=True)],
    )
    def create(self, request: Request) -> HttpResponseBase:
        """One answer, whole or as a stream; `model` is an adapter's name or a base model."""
        chat, departure = openai_services.prepare_chat(request.data), departure_of(request)
        if not chat.stream:
            return Response(openai_services.complete_chat(chat, departure))
        events = sent_events(openai_services.stream_chat(chat, departure))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingHttpResponse(events, content_type="text/event-stream", headers=headers)


class ModelViewSet(ApiViewSet):
    """The models that chat completions may name."""

    lookup_field: ClassVar[str] = "model"
    lookup_value_regex = r".+?"

    @extend_schema(operation_id="openai_models_list", tags=["openai"], responses=openai_serializers.ModelListSerializer)
    def list(self, request: Request) -> Response:
        """The default base model, local ones, and all adapters that change something."""
        return Response({"object": "list", "data": openai_services.list_models()})

    @extend_schema(operation_id="openai_models_retrieve", tags=["openai"], responses=openai_serializers.ModelSerializer)
    def retrieve(self, request: Request, model: str) -> Response:
        """One model."""
        return Response(openai_services.get_model(model))


def sent_events(chunks: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """The chunks as server-sent events; a failure in the middle is the last event, and no [DONE] follows it."""
    try:
        for chunk in chunks:
            yield sent_event(chunk)
        yield DONE
    except ProductError as error:
        status, parts, _ = describe_exception(error, "/v1/chat/completions")
        yield sent_event(openai_error({"status": status, **parts}))


def sent_event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
