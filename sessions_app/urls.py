"""Routes of this app."""

from rest_framework.routers import SimpleRouter


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
