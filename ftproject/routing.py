"""WebSocket routes."""

from django.urls import re_path

from ftproject.system.consumer import EventConsumer

websocket_urlpatterns = [re_path(r"^ws/?$", EventConsumer.as_asgi())]
