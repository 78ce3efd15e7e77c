"""The ASGI application: REST as WSGI threads, `/ws` as a Channels consumer, both behind the gate."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ftproject.settings")

from channels.routing import ProtocolTypeRouter, URLRouter

from ftproject.wsgi import application as wsgi_application  # isort: skip  (sets Django up before the consumer loads)
from ftproject.core.gate import Gate
from ftproject.core.key_ring import KeyRing
from ftproject.core.wsgi_bridge import WsgiBridge
from ftproject.routing import websocket_urlpatterns
from ftproject.scopes import scope_of_request
from ftproject.system.lifespan import Lifespan

routes = ProtocolTypeRouter({"http": WsgiBridge(wsgi_application), "websocket": URLRouter(websocket_urlpatterns)})
application = Gate(Lifespan(routes), keys=KeyRing(), scope_of=scope_of_request)
