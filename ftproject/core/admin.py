"""The admin's pages of events, the GPU lease, API keys and the audit trail: to look at; a key can be revoked."""

import json
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin import ModelAdmin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ftproject.core.api_keys import revoke_api_key
from ftproject.core.errors import ProductError
from ftproject.core.jobs import job_models
from ftproject.core.models import ApiKey, AuditEntry, Event, GpuLease

if TYPE_CHECKING:
    AnyModelAdmin = ModelAdmin[Any]
else:  # generic only in its stubs
    AnyModelAdmin = ModelAdmin

SHOWN_CHARACTERS = 200


class ReadOnlyAdmin(AnyModelAdmin):
    """Rows that code alone writes: a change by hand would break what relies on them."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ["id", "type", "run", "summary", "created_at"]
    list_filter = ["type", "run_kind", "created_at"]
    search_fields = ["type", "data", "=run_id"]
    ordering = ["-id"]
    # The table grows with every training step; a count of all rows for each page would be the slowest part of it.
    show_full_result_count = False
    list_per_page = 100
    fields = ["id", "type", "run", "data", "created_at"]

    @admin.display(description="run", ordering="run_id")
    def run(self, event: Event) -> SafeString | str:
        """A link to the run's own page."""
        if event.run_id is None:
            return "-"
        name = f"{event.run_kind} {event.run_id}"
        model = next((model for model in job_models() if event.run_kind == model.KIND), None)
        if model is None:
            return name
        try:
            route = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
            return format_html('<a href="{}">{}</a>', reverse(route, args=[event.run_id]), name)
        except NoReverseMatch:
            return name

    @admin.display(description="data")
    def summary(self, event: Event) -> str:
        text = json.dumps(event.data, ensure_ascii=False)
        return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


@admin.register(GpuLease)
class GpuLeaseAdmin(ReadOnlyAdmin):
    list_display = ["holder_or_free", "acquired_at", "heartbeat_at", "wanted_by"]
    list_filter = ["holder"]
    search_fields = ["holder", "wanted_by"]
    fields = ["holder", "acquired_at", "heartbeat_at", "wanted_by"]  # the token is the holder's secret

    @admin.display(description="holder", ordering="holder")
    def holder_or_free(self, lease: GpuLease) -> str:
        return str(lease)


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """Keys are made by the command alone, which shows them where nothing keeps them."""

    list_display = ["prefix", "name", "scope", "state", "created_at", "expires_at", "last_used_at", "revoked_at"]
    list_filter = ["scope", "created_at"]
    search_fields = ["prefix", "name"]
    ordering = ["-id"]
    fields = ["prefix", "name", "scope", "state", "created_at", "expires_at", "last_used_at", "revoked_at"]
    actions = ["revoke_keys"]

    @admin.action(description="Revoke the selected keys", permissions=["revoke"])
    def revoke_keys(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        for key in queryset:
            try:
                self.message_user(request, f"{revoke_api_key(prefix=key.prefix)} is revoked.")
            except ProductError as error:
                self.message_user(request, f"{error.detail} {error.hint}", messages.ERROR)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("core.change_apikey")


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display = ["at", "caller_kind", "caller", "method", "route", "ids", "status"]
    list_filter = ["caller_kind", "method", "at"]
    search_fields = ["caller", "route", "path", "ids"]
    ordering = ["-id"]
    show_full_result_count = False
    list_per_page = 100
    fields = ["at", "caller_kind", "caller", "method", "route", "path", "ids", "status"]
