"""The WSGI application that answers every HTTP request (from threads of the ASGI server)."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ftproject.settings")

application = get_wsgi_application()
