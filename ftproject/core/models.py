"""Rows that every part shares: stored events, the GPU lease, API keys and the audit trail."""

from typing import ClassVar

from django.db import models
from django.utils import timezone


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


class KeyScope(models.TextChoices):
    """What an API key may do; each includes the one before it."""

    READ = "read"
    RUN = "run"
    ADMIN = "admin"

    def allows(self, needed: "KeyScope") -> bool:
        order = list(KeyScope)
        return order.index(self) >= order.index(needed)


class ApiKey(models.Model):
    """A key for requests that are not local. Only its digest is stored; a revoked key keeps its row."""

    prefix = models.CharField(max_length=20, unique=True)
    digest = models.CharField(max_length=64)
    name = models.CharField(max_length=100)
    scope = models.CharField(max_length=8, choices=KeyScope.choices)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["id"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.prefix} ({self.name})"

    @property
    def state(self) -> str:
        """active, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= timezone.now() else "active"


class AuditEntry(models.Model):
    """One write: who asked for it, what, when, and how it ended. Never a body, a prompt or a key."""

    class CallerKind(models.TextChoices):
        LOCAL = "local"
        KEY = "key"
        ADMIN = "admin"
        COMMAND = "command"

    at = models.DateTimeField(default=timezone.now, db_index=True)
    caller_kind = models.CharField(max_length=8, choices=CallerKind.choices)
    caller = models.CharField(max_length=150, blank=True, default="")
    method = models.CharField(max_length=8)
    route = models.CharField(max_length=100)
    path = models.CharField(max_length=300, blank=True, default="")
    ids = models.JSONField(default=dict)
    status = models.IntegerField(help_text="The HTTP status, or a command's exit code.")

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "audit entries"

    def __str__(self) -> str:
        return f"{self.method} {self.route} by {self.caller_kind} {self.caller}".rstrip()
