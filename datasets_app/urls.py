"""Routes of this app."""

from rest_framework.routers import SimpleRouter

from datasets_app.prefetch_views import PrefetchViewSet
from datasets_app.preflight_views import PreflightViewSet
from datasets_app.views import DatasetViewSet


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
    router.register("api/datasets/images/prefetch", PrefetchViewSet, basename="prefetch")
    router.register("api/datasets/preflight", PreflightViewSet, basename="preflight")
    router.register("api/datasets", DatasetViewSet, basename="datasets")
