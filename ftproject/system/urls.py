"""Routes of this app."""

from django.urls import URLPattern, path
from rest_framework.routers import SimpleRouter

from ftproject.system.pages import live_page
from ftproject.system.views import SystemViewSet

pages: list[URLPattern] = [path("", live_page, name="live")]


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
    router.register("api/system", SystemViewSet, basename="system")
