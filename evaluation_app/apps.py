"""App configuration of evaluation_app."""

from django.apps import AppConfig


class EvaluationConfig(AppConfig):
    name = "evaluation_app"
    verbose_name = "Evaluation"
