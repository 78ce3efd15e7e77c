"""Greedy answers of a batch whose finished rows leave it: what goes on gets smaller with every row that has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TESTED_VERSIONS = ("5.17.",)  # of transformers; with another one the library's own loop is used
# Taking rows out copies the keys and values that stay: done when at least a quarter of the rows have ended.
KEPT_AT_MOST = 0.75


def knows_this_transformers() -> bool:
    """Whether the installed version is one whose cache and positions this was tested with."""
    import transformers

    version: str = transformers.__version__
    return version.startswith(TESTED_VERSIONS)


def greedy_tokens(
    model: Any, base: Any, inputs: dict[str, Any], *, max_new_tokens: int, end_ids: set[int]
) -> list[list[int]]:
    """The most probable tokens of each row up to its end token, which is included, as `generate` takes them.

    `model` is a Qwen3-VL or its PEFT form, `base` the former; `inputs` are left-padded, of shape (rows, longest).
    Rows that have ended, and padding that no row needs any more, leave the batch; `generate` computes both
    until the last row has ended (500 mixed rows of 2 to 27 tokens: a third of its time, measured).
    """
    import torch

    mask = inputs["attention_mask"]
    positions = first_positions(base, inputs)
    output = model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache, position = output.past_key_values, positions[..., -1:] + 1
    answers: list[list[int]] = [[] for _ in range(mask.shape[0])]
    places = list(range(mask.shape[0]))
    for step in range(1, max_new_tokens + 1):
        tokens = output.logits[:, -1].argmax(dim=-1)
        going = take(tokens.tolist(), places, answers, end_ids)
        if not going or step == max_new_tokens:
            break
        if len(going) <= KEPT_AT_MOST * len(places):
            kept = torch.tensor(going, device=tokens.device)
            places = [places[row] for row in going]
            tokens, mask, position = tokens[kept], mask[kept], position[:, kept]
            mask = shrink_cache(cache, kept, mask)
        mask = torch.cat([mask, mask.new_ones(len(places), 1)], dim=-1)
        output = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        position = position + 1
    return answers


def take(tokens: Sequence[int], places: Sequence[int], answers: list[list[int]], end_ids: set[int]) -> list[int]:
    """Gives each row that still goes on its token; returns which rows of the batch go on after it.

    >>> answers = [[5, 2], [5], [6]]
    >>> take([7, 2, 8], [0, 1, 2], answers, {2}), answers
    ([2], [[5, 2], [5, 2], [6, 8]])
    """
    going = []
    for row, (place, token) in enumerate(zip(places, tokens, strict=True)):
        answer = answers[place]
        if answer and answer[-1] in end_ids:
            continue
        answer.append(token)
        if token not in end_ids:
            going.append(row)
    return going


def first_positions(base: Any, inputs: dict[str, Any]) -> Any:
    """Positions of the prompts, of shape (4, rows, longest): of the text, then of time, height and width."""
    import torch

    mask = inputs["attention_mask"]
    text = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)[None]
    if "image_grid_thw" not in inputs:
        return text.expand(4, -1, -1)
    vision, _ = base.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=mask,
    )
    return torch.cat([text, vision.to(text.device)], dim=0)


def shrink_cache(cache: Any, kept: Any, mask: Any) -> Any:
    """Leaves the kept rows in the cache, without the padding that all of them begin with; returns their mask."""
    padding = int((mask.cumsum(-1) == 0).sum(dim=-1).min())
    cache.batch_select_indices(kept)
    if padding:
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, padding:], layer.values[:, :, padding:]
    return mask[:, padding:]
