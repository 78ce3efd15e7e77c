"""The ASGI application: REST as WSGI threads, `/ws` as a Channels consumer, both behind the local-request gate."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ftproject.settings")

from channels.routing import ProtocolTypeRouter, URLRouter

from ftproject.wsgi import application as wsgi_application  # isort: skip  (sets Django up before the consumer loads)
from ftproject.core.gate import LocalGate
from ftproject.core.wsgi_bridge import WsgiBridge
from ftproject.routing import websocket_urlpatterns
from ftproject.system.lifespan import Lifespan

application = LocalGate(
    Lifespan(ProtocolTypeRouter({"http": WsgiBridge(wsgi_application), "websocket": URLRouter(websocket_urlpatterns)}))
)
