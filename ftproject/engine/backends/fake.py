"""An instant, deterministic backend for tests of what lies above the engine; never a default, computes nothing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from ftproject.engine.adapters import CONFIG_FILE, PROVENANCE_FILE, WEIGHTS_FILE, read_adapter_info, write_adapter
from ftproject.engine.answering import ChatAnswer, ChatRequest
from ftproject.engine.backends.base import (
    FinishReason,
    Generation,
    TrainingCallbacks,
    TrainingJob,
    TrainingProgress,
    TrainingResult,
)
from ftproject.engine.checkpoints import (
    REQUIRED_FILES,
    JobFacts,
    adopt_checkpoint,
    drop_old_checkpoints,
    write_checkpoint,
)
from ftproject.engine.configs import GenerationParams, to_dict
from ftproject.engine.conversations import Conversation, ResolvedConversation

SAFETENSORS_WITHOUT_TENSORS = (2).to_bytes(8, "little") + b"{}"


class FakeModel:
    """Answers with the ground truth when an adapter is given, else with a digest of the prompt."""

    device = "fake"

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name

    def preload(self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None) -> None:
        """Nothing to prepare."""

    def answer_log_probabilities(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None
    ) -> list[float]:
        """The ground truth is nine times as probable as anything else with an adapter, and no more without."""
        return [
            math.log(0.9 if adapter and row.conversation.response == row.conversation.ground_truth else 0.1)
            for row in conversations
        ]

    def prompt_lengths(
        self, conversations: Sequence[ResolvedConversation], *, adapter: Path | None = None
    ) -> list[int]:
        """The words of each prompt, at least one."""
        return [max(1, len(row.conversation.prompt.split())) for row in conversations]

    def batch_tokens(self) -> int | None:
        """Nothing is kept in memory."""
        return None

    def ensure_adapter(self, path: Path) -> None:
        """Raises AdapterError for a folder that no backend would load."""
        read_adapter_info(path)

    def generate(
        self,
        conversations: Sequence[ResolvedConversation],
        params: GenerationParams,
        *,
        adapter: Path | None,
        on_token: Callable[[str], None] | None = None,
    ) -> list[Generation]:
        """One answer per conversation, the same for the same input."""
        if adapter is not None:
            self.ensure_adapter(adapter)
        return [self._answer(row, params, adapter, on_token) for row in conversations]

    def answer(self, requests: Sequence[ChatRequest]) -> list[ChatAnswer]:
        """Repeats the last turn's words with an adapter, else a digest of all turns."""
        return [self._answer_chat(request) for request in requests]

    def _answer_chat(self, request: ChatRequest) -> ChatAnswer:
        last = " ".join(str(part) for part in request.chat.turns[-1].parts if isinstance(part, str))
        row = Conversation(index=0, prompt=repr(request.chat), response="", ground_truth=last)
        try:
            if request.adapter is not None:
                self.ensure_adapter(request.adapter)
            params, on_text = request.decoding.params, request.decoding.on_text
            done = self._answer(ResolvedConversation(row), params, request.adapter, on_text)
        except Exception as error:
            return ChatAnswer(error=error)
        return ChatAnswer(done.text, done.prompt_tokens, done.completion_tokens, done.finish_reason, 0.5, done.time_ms)

    def _answer(
        self,
        row: ResolvedConversation,
        params: GenerationParams,
        adapter: Path | None,
        on_token: Callable[[str], None] | None,
    ) -> Generation:
        conversation = row.conversation
        seen = "\0".join([conversation.prompt, *conversation.images])
        text = conversation.ground_truth if adapter else f"base {hashlib.sha256(seen.encode()).hexdigest()[:6]}"
        words = text.split()
        kept = words[: params.max_new_tokens]
        for place, word in enumerate(kept):
            if on_token is not None:
                on_token(word if place == 0 else f" {word}")
        reason: FinishReason = "stop" if len(kept) == len(words) else "length"
        answer = text if reason == "stop" else " ".join(kept)
        return Generation(answer, len(conversation.prompt.split()), len(kept), reason, 1.0)

    def memory_mb(self) -> int:
        """No memory worth counting."""
        return 0


class FakeBackend:
    """Walks through the phases of a training and writes an adapter folder that reads back as one."""

    name = "fake"

    def train(self, job: TrainingJob, callbacks: TrainingCallbacks) -> TrainingResult:
        """Reports a falling loss for each step, obeys should_stop, and trains nothing."""
        sft = job.effective.config.sft
        for warning in job.effective.warnings:
            callbacks.on_warning(warning)
        for phase in ("loading_model", "preparing_data", "training"):
            callbacks.on_phase(phase, f"{phase} (fake)")
        step = _steps_done(job)
        loss = 4.0 / (step + 1)
        while step < sft.max_steps:
            step, loss = step + 1, 4.0 / (step + 1)
            left = float(sft.max_steps - step)
            callbacks.on_progress(TrainingProgress(step, sft.max_steps, 0.0, loss, sft.learning_rate, 1.0, None, left))
            if sft.save_steps and step % sft.save_steps == 0:
                _checkpoint(job, step)
            if callbacks.should_stop():
                _checkpoint(job, step)
                break
        callbacks.on_phase("saving", "saving (fake)")
        metrics: dict[str, float | None] = {"loss": loss, "train_loss": loss, "eval_loss": None}
        write_adapter(job.adapter_dir, lambda folder: _fill(folder, job, metrics))
        return TrainingResult(
            adapter_path=job.adapter_dir,
            steps=step,
            total_steps=sft.max_steps,
            stopped_early=step < sft.max_steps,
            adapter_effective=True,
            metrics=metrics,
            skipped_rows=[],
            warnings=list(job.effective.warnings),
            duration_seconds=0.0,
            peak_memory_mb=0,
            ended_by="stop" if step < sft.max_steps else "steps",
        )

    def load(
        self,
        model_name: str,
        model_path: str,
        *,
        load_in_4bit: bool | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_seq_length: int | None = None,
    ) -> FakeModel:
        """A model that knows the answers."""
        return FakeModel(model_name)


def _checkpoint(job: TrainingJob, step: int) -> None:
    def fill(folder: Path) -> None:
        for name in REQUIRED_FILES:
            (folder / name).write_bytes(b"")

    config = job.effective.config
    facts = JobFacts(to_dict(config), "fake", "fake", {})
    total = config.sft.max_steps
    write_checkpoint(job.work_dir, fill, step=step, total_steps=total, job=facts, loop={})
    drop_old_checkpoints(job.work_dir, keep=config.sft.save_total_limit)


def _steps_done(job: TrainingJob) -> int:
    source = job.resume_from_checkpoint
    return adopt_checkpoint(source, job.work_dir).step if source else 0


def _fill(folder: Path, job: TrainingJob, metrics: dict[str, float | None]) -> None:
    lora = job.effective.config.lora
    config = {
        "peft_type": "LORA",
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "base_model_name_or_path": job.effective.model_name,
    }
    provenance = {"backend": "fake", "config": to_dict(job.effective.config), "metrics": metrics, **job.provenance}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, default=str))
    (folder / WEIGHTS_FILE).write_bytes(SAFETENSORS_WITHOUT_TENSORS)
