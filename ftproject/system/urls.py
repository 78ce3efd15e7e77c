"""Routes of this app."""

from django.urls import URLPattern
from rest_framework.routers import SimpleRouter

pages: list[URLPattern] = []


def register(router: SimpleRouter) -> None:
    """Adds this app's view sets to the one router."""
