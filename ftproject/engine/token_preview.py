"""Shows one row token by token as training reads it: ids, texts, kinds and the loss mask, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.token_counts import IMAGE_TOKEN, TokenCounter, image_sizes

Kind = Literal["text", "image", "special"]


@dataclass(frozen=True)
class PreviewToken:
    """One token, or all `count` tokens of an image; `position` is the first one's place in the row, from 0."""

    position: int
    id: int
    text: str
    kind: Kind
    count: int
    trained: bool


@dataclass(frozen=True)
class PreviewImage:
    """An image's upright size in pixels, its size once the pixel rule was applied, and its tokens."""

    width: int
    height: int
    resized_width: int
    resized_height: int
    tokens: int


@dataclass(frozen=True)
class TokenPreview:
    """A row's tokens in order, and how many there are, belong to images, and are learnt from."""

    tokens: list[PreviewToken]
    images: list[PreviewImage]
    total: int
    image: int
    trained: int


def preview_row(counter: TokenCounter, row: ResolvedConversation) -> TokenPreview:
    """The row as `encoding.RowEncoder` encodes it with its answer; raises RowError as that does."""
    prompt, answer = counter.encode(row)
    images = [_image(counter, *size) for size in image_sizes(row.image_paths)]
    return TokenPreview(
        tokens=list(_tokens(counter, prompt, answer)),
        images=images,
        total=len(prompt) + len(answer),
        image=sum(image.tokens for image in images),
        trained=len(answer),
    )


def _image(counter: TokenCounter, width: int, height: int) -> PreviewImage:
    resized_width, resized_height = counter.vision.resized(width, height)
    return PreviewImage(width, height, resized_width, resized_height, counter.vision.tokens(width, height))


def _tokens(counter: TokenCounter, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[PreviewToken]:
    image_id, position = counter.token_id(IMAGE_TOKEN), 0
    for number, run in groupby([*prompt, *answer]):
        length = sum(1 for _ in run)
        text, kind = counter.token_text(number), _kind(counter, number)
        # A large image has thousands of equal tokens: one entry. Two images never touch, tokens stand between them.
        for count in [length] if number == image_id else [1] * length:
            yield PreviewToken(position, number, text, kind, count, position >= len(prompt))
            position += count


def _kind(counter: TokenCounter, number: int) -> Kind:
    if number == counter.token_id(IMAGE_TOKEN):
        return "image"
    return "special" if number in counter.special_ids else "text"
