"""Middleware: every request that may change something leaves an audit entry once its answer is known."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponseBase

from ftproject.core.audit import logger, record_write
from ftproject.core.callers import Caller, caller_of
from ftproject.core.local_requests import SAFE_METHODS
from ftproject.core.models import AuditEntry, KeyScope
from ftproject.scopes import scope_of_route

GetResponse = Callable[[HttpRequest], HttpResponseBase]
# What an answer names as made or changed.
ANSWERED_IDS = ("id", "run_id", "dataset_id", "session_id", "adapter_id")


class AuditMiddleware:
    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if request.method not in SAFE_METHODS:
            try:
                record_request(request, response)
            except Exception:
                # The write has happened; its answer must not become a 500 for want of a note about it.
                logger.exception("the audit entry of %s %s could not be made", request.method, request.path)
        return response


def record_request(request: HttpRequest, response: HttpResponseBase) -> None:
    match, method = request.resolver_match, request.method or ""
    if match is None:
        return  # no route, so nothing was written
    in_admin = match.app_name == "admin"
    if not in_admin and scope_of_route(method, match.view_name) == KeyScope.READ:
        return  # a POST only because its question is long
    caller = admin_user(request) if in_admin else caller_of(request)
    if caller is None:
        return  # nobody is logged in, so nothing was written; failed logins are kept by axes
    ids = admin_ids(request) if in_admin else answered_ids(response)
    record_write(
        caller=caller,
        method=method,
        route=match.view_name,
        path=request.path,
        ids={**match.kwargs, **ids},
        status=response.status_code,
    )


def admin_user(request: HttpRequest) -> Caller | None:
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return None
    return Caller(AuditEntry.CallerKind.ADMIN, user.get_username())


def admin_ids(request: HttpRequest) -> dict[str, Any]:
    """The action of a list and the rows that it was for."""
    action = request.POST.get("action")
    return {"action": action, "selected": request.POST.getlist("_selected_action")} if action else {}


def answered_ids(response: HttpResponseBase) -> dict[str, Any]:
    data = getattr(response, "data", None)
    if not isinstance(data, dict):
        return {}
    return {name: data[name] for name in ANSWERED_IDS if isinstance(data.get(name), int | str)}
