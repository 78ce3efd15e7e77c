"""Reads of training sessions."""

import json
from typing import Any

from ftproject.core.errors import InvalidInputError, NotFoundError
from ftproject.core.pagination import Page
from ftproject.engine.configs import nest_flat_settings, to_dict
from sessions_app.models import TrainingSession
from training_app.configuration import LARGEST_ID, read_training_config

EXPORT_FORMAT = "qwen3vl-session"
EXPORT_VERSION = 1


def get_session(*, session_id: int) -> TrainingSession:
    session = None
    if 0 < session_id <= LARGEST_ID:
        session = TrainingSession.objects.select_related("run__adapter").filter(pk=session_id).first()
    if session is None:
        hint = "GET /api/sessions/ lists them."
        raise NotFoundError(f"There is no session {session_id}.", code="session_not_found", hint=hint)
    return session


def list_sessions(*, page: int, page_size: int) -> tuple[Page, list[TrainingSession]]:
    """One page of all sessions, newest first."""
    sessions = TrainingSession.objects.select_related("run__adapter").order_by("-id")
    where = Page(page, page_size, sessions.count())
    return where, list(sessions[where.offset : where.offset + page_size])


def session_facts(session: TrainingSession) -> dict[str, Any]:
    """A session as the API shows it."""
    return {
        "id": session.pk,
        "name": session.name,
        "description": session.description,
        "status": session.current_status,
        "training_config": given_config(session),
        "training_config_effective": effective_config(session),
        "adapter_path": session.current_adapter_path,
        "run_id": session.run_id,
        "created_at": session.created_at,
        "updated_at": session.updated_at,
    }


def given_config(session: TrainingSession) -> str | dict[str, Any] | None:
    """The configuration as it came: text or object."""
    if session.training_config is None or session.config_was_text:
        return session.training_config
    return config_object(session)


def config_object(session: TrainingSession) -> dict[str, Any]:
    """The stored configuration as an object; {} when none was saved."""
    value: dict[str, Any] = json.loads(session.training_config or "{}")
    return value


def start_body(session: TrainingSession) -> dict[str, Any]:
    """The configuration as a body of training start: settings without a section are put into theirs."""
    return nest_flat_settings(config_object(session))


def effective_config(session: TrainingSession) -> dict[str, Any] | None:
    """Every setting with its value, defaults filled in; the device has its say when a run is started."""
    if session.training_config is None:
        return None
    try:
        return to_dict(read_training_config(start_body(session)))
    except InvalidInputError:  # saved by a version that knew other settings
        return None


def session_export(session: TrainingSession) -> dict[str, Any]:
    """A session as a document that another installation can import; the adapter stays here."""
    return {
        "format": EXPORT_FORMAT,
        "version": EXPORT_VERSION,
        "name": session.name,
        "description": session.description,
        "training_config": given_config(session),
    }
