"""App configuration of inference_app."""

from django.apps import AppConfig


class InferenceConfig(AppConfig):
    name = "inference_app"
    verbose_name = "Inference"
