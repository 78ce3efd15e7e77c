"""The routes of sessions: saved training configurations."""

from typing import ClassVar

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ftproject.core.serializers import DeletedSerializer
from ftproject.core.views import ApiViewSet
from sessions_app import selectors, serializers, services
from training_app.serializers import describe_start, read_idempotency_key

CREATE_EXAMPLE = {"name": "experiment-1", "description": "Testing lr=2e-4"}
SAVE_EXAMPLE = {
    "training_config": '{"max_steps": 60, "learning_rate": 1e-4}',
    "adapter_path": "/path/to/adapter",
    "status": "completed",
}


class SessionViewSet(ApiViewSet):
    """Saved training configurations."""

    lookup_field: ClassVar[str] = "session_id"
    lookup_value_regex = r"[0-9]{1,40}"

    @extend_schema(
        operation_id="sessions_list",
        tags=["sessions"],
        parameters=[serializers.SessionPageSerializer],
        responses=serializers.SessionListSerializer,
    )
    def list(self, request: Request) -> Response:
        """All sessions, newest first."""
        page, found = selectors.list_sessions(**self.check_query(serializers.SessionPageSerializer, request))
        body = {"sessions": [selectors.session_facts(session) for session in found]}
        place = {"page": page.page, "page_size": page.page_size, "total": page.total, "total_pages": page.total_pages}
        return Response(body | place)

    @extend_schema(
        operation_id="sessions_create",
        tags=["sessions"],
        request=serializers.CreateSessionSerializer,
        responses={201: serializers.SessionSerializer},
        examples=[OpenApiExample("The document's example", value=CREATE_EXAMPLE, request_only=True)],
    )
    def create(self, request: Request) -> Response:
        """Saves a new session."""
        session = services.create_session(**self.check_body(serializers.CreateSessionSerializer, request))
        return Response(selectors.session_facts(session), status=201)

    @extend_schema(operation_id="sessions_retrieve", tags=["sessions"], responses=serializers.SessionSerializer)
    def retrieve(self, request: Request, session_id: str) -> Response:
        """One session."""
        return Response(selectors.session_facts(selectors.get_session(session_id=int(session_id))))

    @extend_schema(
        operation_id="sessions_update",
        tags=["sessions"],
        request=serializers.PatchSessionSerializer,
        responses=serializers.SessionSerializer,
    )
    def partial_update(self, request: Request, session_id: str) -> Response:
        """Changes the given fields."""
        values = self.check_body(serializers.PatchSessionSerializer, request)
        session = services.update_session(session=selectors.get_session(session_id=int(session_id)), values=values)
        return Response(selectors.session_facts(session))

    @extend_schema(operation_id="sessions_delete", tags=["sessions"], responses={200: DeletedSerializer})
    def destroy(self, request: Request, session_id: str) -> Response:
        """Deletes a session; its run and adapter stay."""
        services.delete_session(session=selectors.get_session(session_id=int(session_id)))
        return Response({"status": "deleted", "id": int(session_id)})

    @extend_schema(
        operation_id="sessions_save_config",
        tags=["sessions"],
        request=serializers.SaveConfigSerializer,
        responses=serializers.SessionSerializer,
        examples=[OpenApiExample("The document's example", value=SAVE_EXAMPLE, request_only=True)],
    )
    @action(detail=True, methods=["post"], url_path="save-config")
    def save_config(self, request: Request, session_id: str) -> Response:
        """Saves a configuration, and what became of it."""
        values = self.check_body(serializers.SaveConfigSerializer, request)
        session = services.update_session(session=selectors.get_session(session_id=int(session_id)), values=values)
        return Response(selectors.session_facts(session))

    @extend_schema(
        operation_id="sessions_clone", tags=["sessions"], request=None, responses={201: serializers.SessionSerializer}
    )
    @action(detail=True, methods=["post"])
    def clone(self, request: Request, session_id: str) -> Response:
        """A new draft with the same configuration."""
        session = services.clone_session(session=selectors.get_session(session_id=int(session_id)))
        return Response(selectors.session_facts(session), status=201)

    @extend_schema(
        operation_id="sessions_start",
        tags=["sessions"],
        request=None,
        responses={202: serializers.StartedSessionSerializer},
    )
    @action(detail=True, methods=["post"])
    def start(self, request: Request, session_id: str) -> Response:
        """Trains with the session's configuration; the session then shows the run's status and adapter."""
        session = selectors.get_session(session_id=int(session_id))
        started = services.start_session(session=session, idempotency_key=read_idempotency_key(request))
        return Response(describe_start(started) | {"session_id": session.pk}, status=202)

    @extend_schema(operation_id="sessions_export", tags=["sessions"], responses=serializers.SessionExportSerializer)
    @action(detail=True, methods=["get"])
    def export(self, request: Request, session_id: str) -> Response:
        """The session as a JSON document for `POST /api/sessions/import`."""
        session = selectors.get_session(session_id=int(session_id))
        headers = {"Content-Disposition": f'attachment; filename="session-{session.pk}.json"'}
        return Response(selectors.session_export(session), headers=headers)

    @extend_schema(
        operation_id="sessions_import",
        tags=["sessions"],
        request=serializers.ImportSessionSerializer,
        responses={201: serializers.SessionSerializer},
    )
    @action(detail=False, methods=["post"], url_path="import", url_name="import")
    def import_session(self, request: Request) -> Response:
        """A new session from an export."""
        values = self.check_body(serializers.ImportSessionSerializer, request)
        session = services.import_session(document=values)
        return Response(selectors.session_facts(session), status=201)
