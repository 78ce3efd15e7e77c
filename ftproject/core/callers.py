"""Who a request is, a process of this machine or the holder of an API key: the gate decides, others ask here."""

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest

from ftproject.core.models import AuditEntry

SCOPE_KEY = "qwen3vl.caller"


@dataclass(frozen=True)
class Caller:
    kind: AuditEntry.CallerKind
    name: str = ""


LOCAL = Caller(AuditEntry.CallerKind.LOCAL)


def caller_of(request: HttpRequest | Any) -> Caller:
    """What the gate decided. It stands in the ASGI scope, which no header can reach; without a gate (Django's test
    client) a request is local."""
    scope = request.META.get("asgi.scope") or {}
    caller = scope.get(SCOPE_KEY)
    return caller if isinstance(caller, Caller) else LOCAL
