"""Saved training configurations."""

from typing import ClassVar

from django.db import models

from training_app.models import TrainingRun


class TrainingSession(models.Model):
    """A named training configuration to come back to. (Not Django's Session.)"""

    name = models.CharField(max_length=200)
    description = models.TextField(blank=True, default="")
    status = models.CharField(max_length=32, default="draft")
    # As it came: text stays text, an object is kept as its JSON text beside `config_was_text=False`.
    training_config = models.TextField(null=True, blank=True)
    config_was_text = models.BooleanField(default=True)
    adapter_path = models.CharField(max_length=4000, null=True, blank=True)
    run = models.ForeignKey(TrainingRun, on_delete=models.SET_NULL, null=True, blank=True, related_name="sessions")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return self.name
