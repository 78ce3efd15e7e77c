"""Reads about the installation itself: is it well, what does it compute with, what is loaded."""

import logging
from functools import cache
from typing import Any

from django.conf import settings
from django.db import Error, connection
from django.db.models import QuerySet

from ftproject.core.audit import store_waiting
from ftproject.core.errors import UnavailableError
from ftproject.core.lease import lease_holder
from ftproject.core.models import AuditEntry
from ftproject.core.queue import queue_worker_seen
from ftproject.core.storage import models_dir
from ftproject.engine.configs import ConfigError, DeviceFacts, resolve_model
from ftproject.engine.gpu import device_facts
from inference_app.model_server import NOT_LOADED, model_server
from inference_app.remote_server import remote_server

logger = logging.getLogger(__name__)


def get_health() -> dict[str, Any]:
    """200 without a queue worker, which is named beside it; 503 without the database, without which nothing works."""
    device = this_device()
    return {
        "status": "ok",
        "version": settings.VERSION,
        "database": check_database(),
        "queue_worker": queue_worker_seen(),
        "device": (device.name or "cuda") if device.cuda else "cpu",
        "default_model_name": default_model_name(device),
    }


@cache
def this_device() -> DeviceFacts:
    """Asked once: opening NVML takes tens of milliseconds, and a machine keeps its GPU."""
    return device_facts()


def check_database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error as error:
        logger.exception("health: the database does not answer")
        hint = "Look at the server's log and at QWEN3VL_DATABASE_URL."
        headers = {"Retry-After": "2"}
        raise UnavailableError(
            "The database does not answer.", code="database_unavailable", hint=hint, headers=headers
        ) from error
    return connection.vendor


def default_model_name(device: DeviceFacts) -> str | None:
    """The base model of a request that names none; None when QWEN3VL_DEFAULT_MODEL_NAME cannot be used here."""
    try:
        return resolve_model(None, device, default_model=settings.DEFAULT_MODEL_NAME, models_dir=models_dir())[0]
    except ConfigError:
        return None


def get_model_status() -> dict[str, Any]:
    """What the model server holds, and who has the GPU: the server, a run, or nobody."""
    remote = remote_server()
    told = NOT_LOADED | remote.status() if remote else model_server.status() | {"remote": None}
    return {**told, "gpu_holder": lease_holder() or None}


def find_audit_entries(*, caller_kind: str | None, caller: str | None) -> QuerySet[AuditEntry]:
    """Newest first, those included that a locked database had not taken yet."""
    store_waiting()
    wanted = {"caller_kind": caller_kind, "caller": caller}
    return AuditEntry.objects.filter(**{name: value for name, value in wanted.items() if value is not None})
