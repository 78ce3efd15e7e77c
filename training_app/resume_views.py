"""The routes that continue a training run, and that free what a continuation would need."""

from typing import Any, ClassVar

from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ftproject.core.serializers import DeletedSerializer, StrictSerializer
from ftproject.core.views import ApiViewSet
from training_app import resume, selectors
from training_app.serializers import describe_start, read_idempotency_key
from training_app.services import StartedRun
from training_app.views import IDEMPOTENCY_KEY


class NothingSerializer(StrictSerializer):
    """A continuation takes everything from the run that it continues."""


class ResumedSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(["started", "queued"])
    run_id = serializers.IntegerField(help_text="The new run.")
    queue_position = serializers.IntegerField(required=False, help_text="Only while the run waits.")
    resumed_from = serializers.IntegerField()
    resumed_step = serializers.IntegerField(help_text="The step that it continues from.")
    total_steps = serializers.IntegerField(allow_null=True)
    model_name = serializers.CharField()
    device = serializers.CharField()
    warnings = serializers.ListField(child=serializers.CharField())


class CheckpointsDeletedSerializer(DeletedSerializer):
    freed_bytes = serializers.IntegerField()


RESUMED = {"status": "started", "run_id": 4, "resumed_from": 3, "resumed_step": 60, "total_steps": 100}


class ResumeViewSet(ApiViewSet):
    """Continues a run that was stopped or died."""

    lookup_value_regex = r"[0-9]{1,40}"
    lookup_field: ClassVar[str] = "run_id"

    @extend_schema(
        operation_id="training_runs_resume",
        tags=["training"],
        parameters=[IDEMPOTENCY_KEY],
        request=NothingSerializer,
        responses={202: ResumedSerializer},
        examples=[OpenApiExample("Going on from step 60", value=RESUMED, response_only=True)],
    )
    @action(detail=True, methods=["post"], url_path="resume", url_name="resume")
    def continue_run(self, request: Request, run_id: str) -> Response:
        """Continues the run from its last checkpoint, as a new run."""
        self.check_body(NothingSerializer, request)
        run = selectors.get_run(run_id=int(run_id))
        key = read_idempotency_key(request)
        return Response(describe_resumed(resume.resume_training(run=run, idempotency_key=key)), status=202)

    @extend_schema(
        operation_id="training_runs_checkpoints_delete",
        tags=["training"],
        responses={200: CheckpointsDeletedSerializer},
    )
    @action(detail=True, methods=["delete"])
    def checkpoints(self, request: Request, run_id: str) -> Response:
        """Deletes the checkpoints of a run that has ended; it can then no longer be resumed."""
        freed = resume.delete_checkpoints(run=selectors.get_run(run_id=int(run_id)))
        return Response({"status": "deleted", "id": int(run_id), "freed_bytes": freed})


def describe_resumed(started: StartedRun) -> dict[str, Any]:
    run = started.run
    names = ("resumed_step", "total_steps")
    return (
        describe_start(started) | {"resumed_from": run.resumed_from_id} | {name: getattr(run, name) for name in names}
    )
