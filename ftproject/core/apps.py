"""App configuration of the core: registers the system checks and prepares connections."""

from django.apps import AppConfig
from django.db.backends.signals import connection_created


class CoreConfig(AppConfig):
    name = "ftproject.core"
    label = "core"
    verbose_name = "Core"

    def ready(self) -> None:
        from ftproject.core import checks  # noqa: F401
        from ftproject.core.postgres import accept_any_text

        connection_created.connect(accept_any_text, dispatch_uid="accept_any_text")
