"""Routes of this app."""

from rest_framework.routers import SimpleRouter

from evaluation_app.comparison.views import ComparisonViewSet
from evaluation_app.resume_views import EvaluationResumeViewSet
from evaluation_app.views import EvaluationRunViewSet, EvaluationViewSet


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
    router.register("api/evaluation/runs", EvaluationRunViewSet, basename="evaluation-runs")
    router.register("api/evaluation/runs", EvaluationResumeViewSet, basename="evaluation-resume")
    router.register("api/evaluation/compare", ComparisonViewSet, basename="evaluation-compare")
    router.register("api/evaluation", EvaluationViewSet, basename="evaluation")
