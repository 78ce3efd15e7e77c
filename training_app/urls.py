"""Routes of this app."""

from rest_framework.routers import SimpleRouter

from training_app.import_views import AdapterImportViewSet
from training_app.merge_views import AdapterMergeViewSet, MergeViewSet
from training_app.resume_views import ResumeViewSet
from training_app.run_report_views import RunReportViewSet
from training_app.token_preview_views import TokenPreviewViewSet
from training_app.views import AdapterViewSet, TrainingRunViewSet, TrainingViewSet


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
    router.register("api/training/runs", TrainingRunViewSet, basename="training-runs")
    router.register("api/training/runs", ResumeViewSet, basename="training-resume")
    router.register("api/training/runs", RunReportViewSet, basename="training-reports")
    # Before the adapters' own routes, whose {name} would be "import".
    router.register("api/training/adapters", AdapterImportViewSet, basename="adapter-import")
    router.register("api/training/adapters", AdapterViewSet, basename="adapters")
    router.register("api/training/adapters", AdapterMergeViewSet, basename="adapter-merge")
    router.register("api/training/merges", MergeViewSet, basename="merges")
    router.register("api/training/token-preview", TokenPreviewViewSet, basename="token-preview")
    router.register("api/training", TrainingViewSet, basename="training")
