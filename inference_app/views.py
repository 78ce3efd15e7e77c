"""The routes of inference: one answer, or base and fine-tuned side by side."""

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ftproject.core.departure import departure_of
from ftproject.core.views import ApiViewSet
from inference_app import serializers, services

GENERATE = {
    "prompt": "Describe what you see in this image",
    "image_urls": ["https://example.com/photo.jpg"],
    "adapter_path": None,
    "generation_params": {
        "max_new_tokens": 256,
        "temperature": 0.7,
        "top_p": 0.9,
        "min_p": 0.0,
        "do_sample": True,
    },
}
GENERATED = {"output": "The image shows...", "model_type": "base", "generation_time_ms": 1234.5}
COMPARE = {
    "prompt": "Describe what you see",
    "image_urls": ["https://example.com/photo.jpg"],
    "adapter_path": "/path/to/adapter_20260215_143022",
}
COMPARED = {"base_output": "...", "finetuned_output": "...", "base_time_ms": 1100.0, "finetuned_time_ms": 1250.0}


class InferenceViewSet(ApiViewSet):
    """Answers from the loaded model."""

    @extend_schema(
        operation_id="inference_generate",
        tags=["inference"],
        request=serializers.GenerateSerializer,
        responses=serializers.GeneratedSerializer,
        examples=[
            OpenApiExample("An image", value=GENERATE, request_only=True),
            OpenApiExample("Its answer", value=GENERATED, response_only=True),
        ],
    )
    @action(detail=False, methods=["post"])
    def generate(self, request: Request) -> Response:
        """One answer; loads the model when it is not loaded. 409 `gpu_busy` while a run has the GPU."""
        body = self.check_body(serializers.GenerateSerializer, request)
        answer = services.generate_answer(**body, departure=departure_of(request))
        return Response(serializers.describe_answer(answer))

    @extend_schema(
        operation_id="inference_compare",
        tags=["inference"],
        request=serializers.CompareSerializer,
        responses=serializers.ComparedSerializer,
        examples=[
            OpenApiExample("Base and fine-tuned", value=COMPARE, request_only=True),
            OpenApiExample("Both answers", value=COMPARED, response_only=True),
        ],
    )
    @action(detail=False, methods=["post"])
    def compare(self, request: Request) -> Response:
        """The answers of the base and of one or several adapters to one prompt, drawn with the same seed."""
        body = self.check_body(serializers.CompareSerializer, request)
        compared = services.compare_answers(**body, departure=departure_of(request))
        return Response(serializers.describe_comparison(compared))
