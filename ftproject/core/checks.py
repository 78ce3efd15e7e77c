"""System checks: a wrong setting is reported with an id and a hint before anything runs."""

import os
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

EXECUTORS = {"local"}
BACKENDS = {"auto", "unsloth", "transformers", "fake"}


@register()
def check_choices(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if settings.BACKEND not in BACKENDS:
        hint = f"Set QWEN3VL_BACKEND to one of {', '.join(sorted(BACKENDS))}."
        found.append(Error(f"Unknown backend {settings.BACKEND!r}.", hint=hint, id="qwen3vl.E001"))
    if settings.EXECUTOR not in EXECUTORS:
        hint = f"Set QWEN3VL_EXECUTOR to one of {', '.join(sorted(EXECUTORS))}."
        found.append(Error(f"Unknown executor {settings.EXECUTOR!r}.", hint=hint, id="qwen3vl.E002"))
    return found


@register()
def check_queue(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """The queue settings that keep a run from being executed twice or lost (docs/decisions/003)."""
    cluster = settings.Q_CLUSTER["ALT_CLUSTERS"][settings.GPU_CLUSTER]
    safe = (
        cluster["workers"] == 1
        and cluster["retry"] >= 1_000_000
        and settings.Q_CLUSTER["max_attempts"] == 1
        and settings.Q_CLUSTER["ack_failures"]
    )
    if safe:
        return []
    hint = "One worker, retry of at least 1,000,000 s, max_attempts 1 and ack_failures in the base block."
    return [Error("The gpu queue could run a job twice.", hint=hint, id="qwen3vl.E003")]


@register()
def check_data_dir(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if os.access(settings.DATA_DIR, os.W_OK):
        return []
    hint = "Give this user the right to write there, or set QWEN3VL_DATA_DIR."
    return [Error(f"The data directory {settings.DATA_DIR} is not writable.", hint=hint, id="qwen3vl.E004")]


@register()
def check_debug(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if not settings.DEBUG:
        return []
    hint = "Unset QWEN3VL_DEBUG outside development: debug pages show settings and source."
    return [Warning("Debug mode is on.", hint=hint, id="qwen3vl.W001")]


@register()
def check_inference_url(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    problem = problem_of_url(settings.INFERENCE_URL) if settings.INFERENCE_URL else None
    if problem is None:
        return []
    hint = "Write it like http://127.0.0.1:8001/v1, or leave QWEN3VL_INFERENCE_URL empty."
    return [Error(f"QWEN3VL_INFERENCE_URL cannot be used: {problem}.", hint=hint, id="qwen3vl.E005")]


def problem_of_url(url: str) -> str | None:
    """Why a server's URL cannot be used, or None."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in {"http", "https"}:
        return "it must begin with http:// or https://"
    if not parts.hostname or parts.query or parts.fragment or parts.username or port == 0:
        return "it must be http(s)://host[:port][/path], without user, query and fragment"
    return None
