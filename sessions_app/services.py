"""Writes of training sessions."""

import json
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from ftproject.core.errors import InvalidInputError, Problem, TooLargeError
from ftproject.core.parsers import refuse_constant, refuse_surrogates, unique_keys
from ftproject.engine.configs import ConfigError, nest_flat_settings
from sessions_app.models import TrainingSession
from sessions_app.selectors import start_body
from training_app.configuration import read_training_config, refusal
from training_app.services import StartedRun, start_training

LARGEST_CONFIG = 64 * 1024
COPY_SUFFIX = " (copy)"
NAME_LENGTH = 200


def create_session(*, name: str, **values: Any) -> TrainingSession:
    session = TrainingSession(name=name)
    apply_values(session, values)
    session.save()
    return session


def update_session(*, session: TrainingSession, values: Mapping[str, Any]) -> TrainingSession:
    """Writes the given fields and leaves the others alone."""
    apply_values(session, values)
    session.save(update_fields=[*stored_fields(values), "updated_at"])
    return session


def stored_fields(values: Mapping[str, Any]) -> list[str]:
    return [*values, "config_was_text"] if "training_config" in values else list(values)


def apply_values(session: TrainingSession, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if name == "training_config":
            session.training_config, session.config_was_text = store_config(value)
        else:
            setattr(session, name, value)


def store_config(value: str | dict[str, Any] | None) -> tuple[str | None, bool]:
    """The text to store and whether it came as text; refuses what training start would refuse."""
    if value is None:
        return None, True
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text.encode()) > LARGEST_CONFIG:
        raise TooLargeError(f"training_config is larger than {LARGEST_CONFIG // 1024} kB.")
    config = read_config_text(value) if isinstance(value, str) else value
    try:
        nested = nest_flat_settings(config)
    except ConfigError as exc:
        raise refusal(exc) from exc
    read_training_config(nested)
    return text, isinstance(value, str)


def read_config_text(text: str) -> dict[str, Any]:
    """The object in a JSON text, read as strictly as a request body."""
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    except RecursionError:
        raise config_refused("is nested too deeply") from None
    except ValueError as exc:
        raise config_refused(f"is not valid JSON: {exc}") from None
    if not isinstance(value, dict):
        raise config_refused("must be a JSON object")
    refuse_surrogates(value)
    return value


def config_refused(message: str) -> InvalidInputError:
    problem = Problem(code="invalid_training_config", message=message, field="training_config")
    hint = 'Send an object like {"max_steps": 60}, or that as a JSON text; GET /api/training/schema lists the settings.'
    return InvalidInputError(f"training_config {message}.", code="invalid_training_config", hint=hint, errors=[problem])


def clone_session(*, session: TrainingSession) -> TrainingSession:
    """A new draft with the same configuration; run and adapter belong to the original."""
    return TrainingSession.objects.create(
        name=session.name[: NAME_LENGTH - len(COPY_SUFFIX)] + COPY_SUFFIX,
        description=session.description,
        training_config=session.training_config,
        config_was_text=session.config_was_text,
    )


def import_session(*, document: Mapping[str, Any]) -> TrainingSession:
    """A new draft from an export."""
    return create_session(**{name: value for name, value in document.items() if name not in {"format", "version"}})


def start_session(*, session: TrainingSession, idempotency_key: str | None = None) -> StartedRun:
    """Starts a run with the session's configuration; its status and adapter then follow that run."""
    with transaction.atomic():
        started = start_training(body=start_body(session), idempotency_key=idempotency_key)
        session.run = started.run
        session.status = TrainingSession.Status.TRAINING
        session.adapter_path = None
        session.save(update_fields=["run", "status", "adapter_path", "updated_at"])
    return started


def delete_session(*, session: TrainingSession) -> None:
    session.delete()
