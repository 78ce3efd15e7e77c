"""The admin's page of training sessions."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from sessions_app.models import TrainingSession
from sessions_app.services import clone_session, start_session
from training_app.admin import AnyModelAdmin, act_on_each, link_to


def clone(session: TrainingSession) -> str:
    return f"Session {session}: copied to {clone_session(session=session)}."


def start(session: TrainingSession) -> str:
    started = start_session(session=session)
    return f"Session {session}: run {started.run.pk} is {'queued' if started.waits else 'started'}."


@admin.register(TrainingSession)
class TrainingSessionAdmin(AnyModelAdmin):
    """Name and description are the user's to edit; a configuration is saved through the API, which checks it."""

    list_display = ("id", "name", "current_status", "description", "run_link", "current_adapter_path", "updated_at")
    list_display_links = ("id", "name")
    list_filter = ("status", "created_at")
    search_fields = ("name", "description", "training_config", "adapter_path")
    list_select_related = ("run__adapter",)
    actions = ("start_sessions", "clone_sessions")
    fields = (
        "name",
        "description",
        "status",
        "training_config",
        "config_was_text",
        "adapter_path",
        "run_link",
        "created_at",
        "updated_at",
    )
    readonly_fields = ("training_config", "config_was_text", "run_link", "created_at", "updated_at")

    @admin.display(description="run")
    def run_link(self, session: TrainingSession) -> str:
        return link_to(session.run)

    @admin.action(description="Start training with the selected sessions", permissions=["change"])
    def start_sessions(self, request: HttpRequest, queryset: QuerySet[TrainingSession]) -> None:
        act_on_each(request, queryset, start)

    @admin.action(description="Copy the selected sessions", permissions=["add"])
    def clone_sessions(self, request: HttpRequest, queryset: QuerySet[TrainingSession]) -> None:
        act_on_each(request, queryset, clone)
