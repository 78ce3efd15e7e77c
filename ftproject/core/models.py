"""Rows that every part shares: stored events and the GPU lease."""

from typing import ClassVar

from django.db import models


class Event(models.Model):
    """One message for `/ws`, stored so that a client that comes back can ask for what it missed."""

    type = models.CharField(max_length=32)
    run_kind = models.CharField(max_length=16, blank=True, default="")
    run_id = models.BigIntegerField(null=True, blank=True)
    data = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["id"]
        indexes: ClassVar = [
            models.Index(fields=["run_kind", "run_id", "id"]),
            models.Index(fields=["created_at"]),
        ]

    def __str__(self) -> str:
        return f"{self.id} {self.type}"


class GpuLease(models.Model):
    """Who holds the device: one row, `holder` empty when nobody does; `lease.py` alone changes it."""

    holder = models.CharField(max_length=64, blank=True, default="")
    token = models.CharField(max_length=32, blank=True, default="")
    acquired_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    wanted_by = models.CharField(max_length=64, blank=True, default="")

    class Meta:
        verbose_name = "GPU lease"

    def __str__(self) -> str:
        return self.holder or "free"
