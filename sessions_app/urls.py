"""Routes of this app."""

from rest_framework.routers import SimpleRouter

from sessions_app.views import SessionViewSet


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
    router.register("api/sessions", SessionViewSet, basename="sessions")
