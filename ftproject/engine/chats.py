"""A chat of several turns with pictures anywhere: what OpenAI's format can say and a dataset row cannot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ftproject.engine.conversations import ResolvedConversation, neutralise_special_tokens

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class ChatTurn:
    """One message: texts (str) and image files (Path) in the order the model shall read them."""

    role: Role
    parts: tuple[str | Path, ...]


@dataclass(frozen=True)
class Chat:
    """The turns so far; the model is to answer the last one."""

    turns: tuple[ChatTurn, ...]

    @property
    def image_paths(self) -> tuple[Path, ...]:
        """All image files in the order of their places in the prompt."""
        return tuple(part for turn in self.turns for part in turn.parts if isinstance(part, Path))


def chat_of_row(row: ResolvedConversation) -> Chat:
    """The chat that asks what a dataset row asks: its images, then its text."""
    return Chat((ChatTurn("user", (*row.image_paths, row.conversation.prompt)),))


def chat_messages(chat: Chat) -> list[dict[str, Any]]:
    """The turns in the shape of the processor's template; special tokens in texts are neutralised."""
    return [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in chat.turns]


def _content(part: str | Path) -> dict[str, str]:
    if isinstance(part, Path):
        return {"type": "image", "image": str(part)}
    return {"type": "text", "text": neutralise_special_tokens(part)}
