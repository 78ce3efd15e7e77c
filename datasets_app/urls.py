"""Routes of this app."""

from rest_framework.routers import SimpleRouter

from datasets_app.prefetch_views import PrefetchViewSet
from datasets_app.preflight_views import PreflightViewSet
from datasets_app.thumbnail_views import RowImageViewSet
from datasets_app.views import DatasetViewSet


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
    router.register("api/datasets/images/prefetch", PrefetchViewSet, basename="prefetch")
    router.register("api/datasets/preflight", PreflightViewSet, basename="preflight")
    rows = r"api/datasets/(?P<dataset_id>[0-9]{1,40})/rows/(?P<index>[0-9]{1,40})/images"
    router.register(rows, RowImageViewSet, basename="row-images")
    router.register("api/datasets", DatasetViewSet, basename="datasets")
