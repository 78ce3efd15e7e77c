"""Routes of this app."""

from rest_framework.routers import SimpleRouter

from inference_app.views import InferenceViewSet


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
    router.register("api/inference", InferenceViewSet, basename="inference")
