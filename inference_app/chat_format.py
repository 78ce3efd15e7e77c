"""Our generation settings and answers in OpenAI's chat format, which a vLLM server speaks too."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftproject.engine.conversations import Conversation, messages_of


class ChatFormatError(ValueError):
    """An answer that is no chat completion."""


@dataclass(frozen=True)
class ChatAnswer:
    """One answer; `generation_ms` is the generation alone, of which `prefill_ms` passed before the first token."""

    text: str
    generation_ms: float
    prefill_ms: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


def openai_messages(prompt: str, images: list[Path]) -> list[dict[str, Any]]:
    """The messages that training and evaluation build, special tokens neutralised, with images as image_url parts."""
    cells = tuple(path.as_uri() for path in images)
    conversation = Conversation(index=0, prompt=prompt, response="", ground_truth="", images=cells)
    return [
        {**message, "content": [openai_part(part) for part in message["content"]]}
        for message in messages_of(conversation, with_response=False)
    ]


def openai_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "image":
        return {"type": "image_url", "image_url": {"url": part["image"]}}
    return part


def read_answer(body: dict[str, Any]) -> ChatAnswer:
    """Raises ChatFormatError."""
    try:
        choice, usage = body["choices"][0], body["usage"]
        return ChatAnswer(
            text=str(choice["message"]["content"]),
            generation_ms=round(float(body["timings"]["generation_ms"]), 1),
            prefill_ms=round(float(body["timings"]["prefill_ms"]), 1),
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
            finish_reason=str(choice["finish_reason"]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ChatFormatError(f"no chat completion: {error!r}") from error
