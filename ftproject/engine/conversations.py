"""Turns a dataset row into the conversation that training, evaluation and the preview all use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `<|name|>` is how every special token of the Qwen3-VL tokenizer is spelled.
_SPECIAL_TOKEN = re.compile(r"<(?=\|[^<>|\s]+\|>)")
_DATA_URI_HEAD = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*,", re.IGNORECASE)
_GUARD = str.maketrans(",;", "\0\1")
_RESTORE = str.maketrans("\0\1", ",;")


@dataclass(frozen=True)
class RowMapping:
    """Which columns of a dataset hold what; `ground_truth_column` null means the response column."""

    prompt_column: str
    response_column: str
    ground_truth_column: str | None = None
    image_url_columns: tuple[str, ...] = ()
    image_separator: str | None = None
    mandatory_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """One row as a conversation: the texts verbatim, and the image cells in order.

    `num_images` counts the row's cells; `images` may lack some of them once they were looked for.
    """

    index: int
    prompt: str
    response: str
    ground_truth: str
    images: tuple[str, ...] = ()
    skipped: bool = False
    skipped_reason: str | None = None
    num_images: int = 0


@dataclass(frozen=True)
class ResolvedConversation:
    """A conversation whose image cells have become files, in the same order."""

    conversation: Conversation
    image_paths: tuple[Path, ...] = ()


def build_conversation(index: int, row: Mapping[str, str], mapping: RowMapping) -> Conversation:
    """The conversation of one row; skipped, with the reason, when a mandatory cell is blank.

    Raises KeyError when the row lacks a mapped column: the mapping was checked against the header before.
    """
    response = row[mapping.response_column]
    truth = row[mapping.ground_truth_column] if mapping.ground_truth_column else response
    cells = (row[column] for column in mapping.image_url_columns)
    images = tuple(image for cell in cells for image in split_image_cell(cell, mapping.image_separator))
    reason = _reason_to_skip(row, mapping, images)
    return Conversation(
        index=index,
        prompt=row[mapping.prompt_column],
        response=response,
        ground_truth=truth,
        images=images,
        skipped=reason is not None,
        skipped_reason=reason,
        num_images=len(images),
    )


def _reason_to_skip(row: Mapping[str, str], mapping: RowMapping, images: tuple[str, ...]) -> str | None:
    blank = [column for column in mapping.mandatory_columns if not row[column].strip()]
    if blank:
        names = ", ".join(repr(column) for column in blank)
        return f"mandatory column{'s' if len(blank) > 1 else ''} {names} empty"
    if not row[mapping.prompt_column].strip() and not images:
        return "neither a prompt nor an image"
    return None


def split_image_cell(cell: str, separator: str | None) -> list[str]:
    """The images of one cell, blanks dropped; commas and semicolons of a data URI's head do not separate."""
    if not separator:
        return [cell.strip()] if cell.strip() else []
    guarded = _DATA_URI_HEAD.sub(lambda head: head.group().translate(_GUARD), cell)
    return [part.strip().translate(_RESTORE) for part in guarded.split(separator) if part.strip()]


def messages_of(conversation: Conversation, *, with_response: bool) -> list[dict[str, Any]]:
    """Chat messages in the shape of the processor's template: the user's images, then the text."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in conversation.images]
    content.append({"type": "text", "text": neutralise_special_tokens(conversation.prompt)})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if with_response:
        text = neutralise_special_tokens(conversation.response)
        messages.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
    return messages


def neutralise_special_tokens(text: str) -> str:
    """Puts a space after the `<` of every `<|name|>`: user text can neither open a role nor claim an image.

    The text stays readable, an answer may still speak of the token, and doing it twice changes nothing.
    Without it, `<|im_end|>` in a prompt injected roles and `<|image_pad|>` broke the processor with a bare
    StopIteration (both measured).
    """
    return _SPECIAL_TOKEN.sub("< ", text)
