"""App configuration of the system app."""

from django.apps import AppConfig


class SystemConfig(AppConfig):
    name = "ftproject.system"
    label = "system"
    verbose_name = "System"
