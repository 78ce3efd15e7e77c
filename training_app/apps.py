"""App configuration of training_app."""

from django.apps import AppConfig


class TrainingConfig(AppConfig):
    name = "training_app"
    verbose_name = "Training"

    def ready(self) -> None:
        """Tells preflight, in a layer below, what it must know of training."""
        from datasets_app.preflight.port import register_training
        from training_app.preflight import TrainingPreflight

        register_training(TrainingPreflight())
