"""Routes of this app."""

from rest_framework.routers import SimpleRouter

from inference_app.openai_views import ChatCompletionViewSet, ModelViewSet
from inference_app.views import InferenceViewSet


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
    router.register("api/inference", InferenceViewSet, basename="inference")
    router.register("v1/chat/completions", ChatCompletionViewSet, basename="openai-chat-completions")
    router.register("v1/models", ModelViewSet, basename="openai-models")
