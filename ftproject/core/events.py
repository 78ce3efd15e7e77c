"""Every event that `/ws` can carry, as a type, and the one function that publishes them."""

from datetime import timedelta
from typing import Any, Literal, TypedDict, get_args

from django.utils import timezone

from ftproject.core.models import Event

EventType = Literal[
    "gpu_stats",
    "training_status",
    "training_progress",
    "training_complete",
    "training_error",
    "merge_status",
    "eval_status",
    "eval_progress",
    "eval_complete",
    "eval_error",
    "model_status",
    "prefetch_progress",
    "prefetch_complete",
    "prefetch_error",
    "preflight_progress",
    "preflight_complete",
    "preflight_error",
]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
# Superseded by the next one of the same run, so a slow reader may skip them.
COALESCED: frozenset[str] = frozenset(
    {"gpu_stats", "training_progress", "eval_progress", "prefetch_progress", "preflight_progress"}
)


# How long events and audit entries are kept.
RETENTION = timedelta(days=30)


class GpuStats(TypedDict):
    available: bool
    device_name: str | None
    memory_total_mb: int | None
    memory_used_mb: int | None
    memory_free_mb: int | None
    utilization_percent: int | None
    temperature_c: int | None
    power_w: float | None
    devices: list[dict[str, Any]]


class TrainingStatusEvent(TypedDict):
    run_id: int
    status: str
    message: str


class TrainingProgressEvent(TypedDict):
    run_id: int
    step: int
    total_steps: int
    epoch: float | None
    loss: float | None
    lr: float | None
    grad_norm: float | None
    eval_loss: float | None
    eval_exact_match: float | None
    eval_token_f1: float | None
    eta: float | None


class TrainingCompleteEvent(TypedDict):
    run_id: int
    metrics: dict[str, Any]
    adapter_path: str | None
    adapter: str | None
    stopped_early: bool


class RunErrorEvent(TypedDict):
    """training_error, eval_error and prefetch_error."""

    run_id: int
    error: str


class MergeStatusEvent(TypedDict):
    """From the queue to the end; `run_id` is the merge's id."""

    run_id: int
    status: str
    message: str
    adapter: str
    model_name: str
    current: int
    total: int | None
    error: str | None


class EvalStatusEvent(TypedDict):
    run_id: int
    status: str
    message: str
    model_type: str


class EvalProgressEvent(TypedDict):
    run_id: int
    current: int
    total: int
    model_type: str


class EvalCompleteEvent(TypedDict):
    run_id: int
    model_type: str
    metrics: dict[str, Any]


class PrefetchProgressEvent(TypedDict):
    run_id: int
    current: int
    total: int
    ready: int
    failed: int


class PrefetchCompleteEvent(TypedDict):
    run_id: int
    dataset_id: int
    num_images: int
    num_failed: int
    stopped_early: bool


class PreflightProgressEvent(TypedDict):
    run_id: int
    current: int
    total: int


class PreflightCompleteEvent(TypedDict):
    run_id: int
    can_train: bool
    usable: int
    skipped: int


class ModelStatusEvent(TypedDict):
    loaded: bool
    mode: str | None
    adapter: str | None


EventData = (
    GpuStats
    | TrainingStatusEvent
    | TrainingProgressEvent
    | TrainingCompleteEvent
    | RunErrorEvent
    | MergeStatusEvent
    | EvalStatusEvent
    | EvalProgressEvent
    | EvalCompleteEvent
    | PreflightProgressEvent
    | PreflightCompleteEvent
    | ModelStatusEvent
    | PrefetchProgressEvent
    | PrefetchCompleteEvent
)


class EventMessage(TypedDict):
    """One frame of `/ws`."""

    type: str
    id: int
    timestamp: str
    data: EventData


def publish(event_type: EventType, data: EventData, *, run_kind: str = "", run_id: int | None = None) -> Event:
    """Stores an event; the web process's tailer carries it to the sockets within a quarter of a second."""
    return Event.objects.create(type=event_type, data=data, run_kind=run_kind, run_id=run_id)


def event_message(event: Event) -> EventMessage:
    return {"type": event.type, "id": event.id, "timestamp": event.created_at.isoformat(), "data": event.data}


def prune_events(keep: timedelta = RETENTION) -> int:
    """Deletes events that nobody will replay any more."""
    return Event.objects.filter(created_at__lt=timezone.now() - keep).delete()[0]
