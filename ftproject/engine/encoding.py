"""Turns conversations into token ids, loss labels and pixels: once, and the same for training and generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ftproject.engine.backends.base import RowError
from ftproject.engine.chats import Chat, chat_messages
from ftproject.engine.conversations import Conversation, ResolvedConversation, messages_of
from ftproject.engine.images import ImageError, inspect_image
from ftproject.engine.pixel_cache import PixelCache

ASSISTANT_TURN = "<|im_start|>assistant\n"  # how every Qwen chat template opens an answer
IGNORED = -100  # the label that the loss passes over


@dataclass(frozen=True)
class EncodedRow:
    """One row as token ids; `labels` has the ids of the answer and its end, IGNORED elsewhere."""

    index: int
    input_ids: list[int]
    labels: list[int]
    image_paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


class RowEncoder:
    """Encodes rows with one processor; image tokens are counted from the file headers, nothing is decoded."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.image_token: str = processor.image_token
        self.image_token_id: int = processor.image_token_id

    def encode(self, row: ResolvedConversation, *, with_response: bool) -> EncodedRow:
        """The row's tokens: the prompt up to the assistant's turn, and the answer with its end when asked for.

        Prompt and answer are tokenised apart, which is exact because the template ends the prompt with a newline.
        Raises RowError (image_count, or an image's own code).
        """
        conversation = row.conversation
        apply = partial(self.processor.apply_chat_template, tokenize=False)
        prompt, response = prompt_and_answer(apply, conversation, with_response=with_response)
        prompt_ids = self._ids(self._expanded(prompt, row.image_paths))
        answer_ids = self._ids(response) if response else []
        return EncodedRow(
            index=conversation.index,
            input_ids=prompt_ids + answer_ids,
            labels=[IGNORED] * len(prompt_ids) + answer_ids,
            image_paths=row.image_paths,
        )

    def encode_chat(self, chat: Chat) -> EncodedRow:
        """A chat up to the assistant's next turn; of one user turn, images first, the tokens of `encode`.

        Raises RowError as `encode` does; the row's index is 0.
        """
        prompt = self.processor.apply_chat_template(chat_messages(chat), tokenize=False, add_generation_prompt=True)
        ids = self._ids(self._expanded(prompt, chat.image_paths))
        return EncodedRow(index=0, input_ids=ids, labels=[IGNORED] * len(ids), image_paths=chat.image_paths)

    def _expanded(self, prompt: str, image_paths: Sequence[Path]) -> str:
        """The prompt with each image's place as long as the image has tokens."""
        counts = [self.image_tokens(path) for path in image_paths]
        pieces = prompt.split(self.image_token)
        if len(pieces) != len(counts) + 1:
            message = f"{len(pieces) - 1} image places for {len(counts)} image files"
            raise RowError("image_count", message)
        return pieces[0] + "".join(
            self.image_token * count + piece for count, piece in zip(counts, pieces[1:], strict=True)
        )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def image_tokens(self, path: Path) -> int:
        """How many tokens an image takes, from its header; raises RowError with the image's code."""
        processor = self.processor.image_processor
        try:
            facts = inspect_image(path)
            patches = processor.get_number_of_image_patches(facts.height, facts.width, {})
        except ImageError as error:
            raise RowError(error.code, error.message) from error
        except ValueError as error:  # smart_resize refuses aspect ratios beyond 200
            raise RowError("image_aspect_ratio", str(error)) from error
        return int(patches) // int(processor.merge_size) ** 2


def prompt_and_answer(apply: Callable[..., str], conversation: Conversation, *, with_response: bool) -> tuple[str, str]:
    """The text up to the assistant's turn, and the answer with its end ("" unless asked for).

    `apply(messages, add_generation_prompt=...)` renders the chat template. Raises RowError (template_mismatch).
    """
    messages = messages_of(conversation, with_response=with_response)
    prompt = apply(messages[:1], add_generation_prompt=True)
    if not with_response:
        return prompt, ""
    whole = apply(messages)
    if not whole.startswith(prompt):
        # Templates of thinking models open a <think> block for generation that a given answer does not have.
        prompt = apply(messages[:1]) + ASSISTANT_TURN
    if not whole.startswith(prompt):
        raise RowError("template_mismatch", "the chat template does not begin the answer as it ends the prompt")
    return prompt, whole[len(prompt) :]


def build_batch(
    rows: Sequence[EncodedRow],
    pixels: PixelCache,
    *,
    image_token_id: int,
    pad_token_id: int,
    padding_side: Literal["left", "right"],
    with_labels: bool,
) -> dict[str, Any]:
    """Model inputs of a batch: ids, mask, token types and labels of shape (rows, longest), pixels of all images.

    Raises RowError naming the row's index in the dataset.
    """
    import torch

    longest = max(len(row) for row in rows)

    def padded(sequences: Sequence[list[int]], filler: int) -> Any:
        pads = [[filler] * (longest - len(ids)) for ids in sequences]
        left = padding_side == "left"
        return torch.tensor([p + ids if left else ids + p for ids, p in zip(sequences, pads, strict=True)])

    input_ids = padded([row.input_ids for row in rows], pad_token_id)
    batch = {
        "input_ids": input_ids,
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
        "mm_token_type_ids": (input_ids == image_token_id).int(),
    }
    if with_labels:
        batch["labels"] = padded([row.labels for row in rows], IGNORED)
    return batch | _pixel_inputs(rows, pixels)


def _pixel_inputs(rows: Sequence[EncodedRow], pixels: PixelCache) -> dict[str, Any]:
    paths = [path for row in rows for path in row.image_paths]
    if not paths:
        return {}
    try:
        values, grids = pixels.batch(paths)
    except RowError:
        _name_the_row(rows, pixels)
        raise
    return {"pixel_values": values, "image_grid_thw": grids}


def _name_the_row(rows: Sequence[EncodedRow], pixels: PixelCache) -> None:
    for row in rows:
        for path in row.image_paths:
            try:
                pixels.get(path)
            except RowError as error:
                raise RowError(error.code, f"row {row.index}: {error.message}") from error
