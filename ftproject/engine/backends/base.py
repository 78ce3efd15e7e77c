"""The seam between the product and what computes: the job, its callbacks, and what a backend can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from ftproject.engine.configs import EffectiveConfig, GenerationParams
from ftproject.engine.conversations import ResolvedConversation

if TYPE_CHECKING:
    from ftproject.engine.answering import ChatAnswer, ChatRequest

FinishReason = Literal["stop", "length"]
EndedBy = Literal["steps", "stop", "patience"]


@dataclass(frozen=True)
class TrainingJob:
    """One training run: what to train on which rows, and where the results go.

    `rows` and `heldout` hold no skipped conversation. The adapter appears at `adapter_dir` complete or not at
    all; checkpoints live in `work_dir`, TensorBoard's files in `log_dir` where they are asked for. `provenance` is
    stored with the adapter beside what training knows.
    """

    effective: EffectiveConfig
    rows: Sequence[ResolvedConversation]
    heldout: Sequence[ResolvedConversation]
    adapter_dir: Path
    work_dir: Path
    provenance: Mapping[str, Any] = field(default_factory=dict)
    resume_from_checkpoint: Path | None = None
    log_dir: Path | None = None


@dataclass(frozen=True)
class TrainingProgress:
    """Where training stands after a step; `eta_seconds` counts from now.

    Loss, learning rate and gradient norm are null between logged steps; `eval_loss` is set only when it was measured,
    the scores of generated held-out answers (0 to 1) only when eval_generation_rows asks for them.
    """

    step: int
    total_steps: int
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    eval_loss: float | None = None
    eta_seconds: float | None = None
    eval_exact_match: float | None = None
    eval_token_f1: float | None = None


@dataclass(frozen=True)
class SkippedRow:
    """A row that was not trained on, by its index in the dataset; `tokens` where it is too long."""

    index: int
    reason: str
    tokens: int | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What a finished (or gracefully stopped) training leaves behind.

    `ended_by` says why there is no further step: they are all done, a stop was asked for, or early stopping lost its
    patience. `best_step` is the step whose adapter was kept, where early stopping chose one.
    """

    adapter_path: Path
    steps: int
    total_steps: int
    stopped_early: bool
    adapter_effective: bool
    metrics: dict[str, float | None]
    skipped_rows: list[SkippedRow]
    warnings: list[str]
    duration_seconds: float
    peak_memory_mb: int
    checkpoint_path: Path | None = None
    ended_by: EndedBy = "steps"
    best_step: int | None = None


@dataclass(frozen=True)
class Generation:
    """One answer; `time_ms` is the generation alone (a batch's time is shared among its rows)."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: FinishReason
    time_ms: float


class TrainingCallbacks(Protocol):
    """What a training run tells its caller, and the one thing it asks."""

    def on_phase(self, phase: str, message: str) -> None:
        """A phase began: loading_model, preparing_data, training, saving."""

    def on_progress(self, progress: TrainingProgress) -> None:
        """A step was done, or a held-out loss measured."""

    def on_history(self, steps: Sequence[TrainingProgress]) -> None:
        """The logged steps before a resume, one entry a step: a kill may have kept the last of them from the caller."""

    def on_warning(self, message: str) -> None:
        """Something differs from what was asked."""

    def should_stop(self) -> bool:
        """True ends training after the current step; the adapter is saved."""


@runtime_checkable
class LoadedModel(Protocol):
    """A base model in memory that answers with or without adapters, one caller at a time."""

    model_name: str
    device: str

    def generate(
        self,
        conversations: Sequence[ResolvedConversation],
        params: GenerationParams,
        *,
        adapter: Path | None,
        on_token: Callable[[str], None] | None = None,
    ) -> list[Generation]:
        """One answer per conversation, in order; `adapter` null answers with the base."""

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        """One answer per chat, in order; what is wrong with one of them is its `error`."""

    def answer_log_probabilities(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None
    ) -> list[float]:
        """Of each conversation, the log-probability that the answer is exactly its response, the end included."""

    def preload(self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None) -> None:
        """Prepares the images of coming conversations; may run in another thread, and never raises EngineError."""

    def prompt_lengths(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None
    ) -> list[int]:
        """Tokens of each prompt, images included; 0 for one that cannot be encoded: `generate` says why."""

    def batch_tokens(self) -> int | None:
        """Padded tokens of prompts and answers that fit into memory at once, estimated; null when nobody knows."""

    def ensure_adapter(self, path: Path) -> None:
        """Loads the adapter beside the base unless it is loaded already."""

    def memory_mb(self) -> int:
        """Memory of the device (CUDA) or of the process (CPU) in MiB."""


class Backend(Protocol):
    """One way of computing; every backend makes the same adapter folder."""

    name: str

    def train(self, job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        """Runs the job; raises TrainingError with a reason a user can act on."""

    def load(
        self,
        model_name: str,
        model_path: str,
        *,
        load_in_4bit: bool | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_seq_length: int | None = None,
    ) -> LoadedModel:
        """Loads a base model for generation."""


class EngineError(RuntimeError):
    """Work that cannot be done, with a stable code and a message a user can act on."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


class TrainingError(EngineError):
    """A training run that cannot start or go on."""


class RowError(EngineError):
    """A row that cannot become model input: an unusable image, or more tokens than the model reads."""
