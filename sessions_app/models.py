"""Saved training configurations."""

from typing import ClassVar

from django.db import models

from training_app.models import TrainingRun
from training_app.selectors import adapter_of


class TrainingSession(models.Model):
    """A named training configuration to come back to. (Not Django's Session.)"""

    class Status(models.TextChoices):
        """The words we use; the field takes the ones a client needs beside them."""

        DRAFT = "draft"
        READY = "ready"
        TRAINING = "training"
        COMPLETED = "completed"
        ERROR = "error"
        ARCHIVED = "archived"

    name = models.CharField(max_length=200)
    description = models.TextField(blank=True, default="")
    status = models.CharField(max_length=32, default=Status.DRAFT)
    # As it came: text stays text, an object is kept as its JSON text beside `config_was_text=False`.
    training_config = models.TextField(null=True, blank=True)
    config_was_text = models.BooleanField(default=True)
    # A label that a client gave; never opened.
    adapter_path = models.CharField(max_length=4000, null=True, blank=True)
    run = models.ForeignKey(TrainingRun, on_delete=models.SET_NULL, null=True, blank=True, related_name="sessions")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return self.name

    @property
    def current_status(self) -> str:
        """The stored word, except that a session whose run was started here follows that run."""
        if self.status != self.Status.TRAINING:
            return self.status
        if self.run is None:
            return self.Status.DRAFT
        return self.run.status if self.run.is_terminal else self.Status.TRAINING

    @property
    def current_adapter_path(self) -> str | None:
        """The label as given, else the adapter of the session's own run."""
        adapter = adapter_of(self.run) if self.run else None
        return self.adapter_path or (str(adapter.path) if adapter else None)
