"""Reads the QWEN3VL_* environment once and turns it into typed values for settings.py."""

import os
import secrets
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

PREFIX = "QWEN3VL_"
TRUE_WORDS = {"1", "true", "yes", "on"}
FALSE_WORDS = {"0", "false", "no", "off", ""}


def env_text(name: str, default: str = "") -> str:
    return os.environ.get(PREFIX + name, default).strip()


def env_bool(name: str, default: bool) -> bool:
    raw = env_text(name, "1" if default else "0").lower()
    if raw in TRUE_WORDS | FALSE_WORDS:
        return raw in TRUE_WORDS
    raise ImproperlyConfigured(f"{PREFIX}{name} is {raw!r}: write 1 or 0.")


def env_int(name: str, default: int, minimum: int = 1) -> int:
    raw = env_text(name, str(default))
    try:
        value = int(raw)
    except ValueError:
        raise ImproperlyConfigured(f"{PREFIX}{name} is {raw!r}: write a whole number.") from None
    if value < minimum:
        raise ImproperlyConfigured(f"{PREFIX}{name} is {value}: it must be at least {minimum}.")
    return value


def env_list(name: str) -> list[str]:
    return [item.strip() for item in env_text(name).split(",") if item.strip()]


def read_or_create_secret(path: Path) -> str:
    """The signing key of this data directory, made on first use and readable by its owner only.

    django-q2's queue rows are signed pickles, so a constant key in the source would be remote code execution for
    anyone who can write to the database.
    """
    try:
        return path.read_text()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process of ours was first
        return path.read_text()
    with os.fdopen(descriptor, "w") as stream:
        stream.write(secrets.token_urlsafe(50))
    return path.read_text()
