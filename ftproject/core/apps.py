"""App configuration of the core: importing it registers the system checks."""

from django.apps import AppConfig


class CoreConfig(AppConfig):
    name = "ftproject.core"
    label = "core"
    verbose_name = "Core"

    def ready(self) -> None:
        from ftproject.core import checks  # noqa: F401
