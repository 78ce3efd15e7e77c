"""Train every weight of the tiny Qwen3-VL on the drawn tasks, and score it on drawings it never saw."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

# This module is training itself; only `builder.build_tiny_model` imports it, and only when it runs.
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration

from ftproject.engine.tiny.architecture import (
    GRID_SIDE,
    IMAGE_TOKENS,
    MERGE_SIZE,
    PATCH_SIZE,
    PIXEL_MEAN,
    PIXEL_STD,
    TEMPORAL_PATCH_SIZE,
)
from ftproject.engine.tiny.drawings import (
    HELD_OUT_FIRST_INDEX,
    PRETRAINING_FIRST_INDEX,
    PROMPTS,
    DrawnSample,
    TaskName,
    draw_sample,
)
from ftproject.engine.tiny.tokenizer import END_OF_TURN, IMAGE_PAD, VISION_END, VISION_START

BATCH_SIZE = 32
PEAK_LEARNING_RATE = 1.2e-3
WARMUP_STEPS = 100
FINAL_LEARNING_RATE_SHARE = 0.03
SCORING_BATCH_SIZE = 100

ProgressCallback = Callable[[int, int, float], None]
Batch = dict[str, torch.Tensor]
_IGNORED_LABEL = -100


class TaskEncoder:
    """Turns drawn samples into model inputs, exactly as the chat template and the image processor would."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_PAD)

    def encode(self, samples: Sequence[DrawnSample]) -> Batch:
        """Encode N samples with M pictures in all, right-padded to L tokens.

        `input_ids, attention_mask, labels, mm_token_type_ids` are [N, L], `pixel_values` [M * 16, 1536],
        `image_grid_thw` [M, 3]. Labels cover the answer and the end of the turn only.
        """
        prompts = [self._prompt_ids(sample) for sample in samples]
        answers = [self._text_ids(sample.answer + END_OF_TURN) for sample in samples]
        pairs = list(zip(prompts, answers, strict=True))
        input_ids = _pad([prompt + answer for prompt, answer in pairs], self._tokenizer.pad_token_id)
        labels = _pad([[_IGNORED_LABEL] * len(prompt) + answer for prompt, answer in pairs], _IGNORED_LABEL)
        pictures = np.stack([np.asarray(image) for sample in samples for image in sample.images])
        return {
            "input_ids": input_ids,
            "attention_mask": _pad([[1] * len(prompt + answer) for prompt, answer in pairs], 0),
            "labels": labels,
            "mm_token_type_ids": (input_ids == self._image_token_id).int(),
            "pixel_values": patchify(pictures),
            "image_grid_thw": torch.tensor([[1, GRID_SIDE, GRID_SIDE]] * len(pictures)),
        }

    def _prompt_ids(self, sample: DrawnSample) -> list[int]:
        picture = VISION_START + IMAGE_PAD * IMAGE_TOKENS + VISION_END
        pictures = picture * len(sample.images)
        return self._text_ids(f"<|im_start|>user\n{pictures}{sample.prompt}<|im_end|>\n<|im_start|>assistant\n")

    def _text_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids


def patchify(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Cut pictures [M, 64, 64, 3] (0..255) into normalised patches [M * 16, 3 * 2 * 16 * 16].

    The order is that of Qwen2VLImageProcessor (patches of one merged token adjacent, the frame repeated for
    the temporal patch); one call for the whole batch instead of one per picture.
    """
    blocks = GRID_SIDE // MERGE_SIZE
    pixels = (torch.from_numpy(pictures).float() / 255 - PIXEL_MEAN) / PIXEL_STD
    patches = (
        pixels.permute(0, 3, 1, 2)
        .reshape(len(pictures), 3, blocks, MERGE_SIZE, PATCH_SIZE, blocks, MERGE_SIZE, PATCH_SIZE)
        .permute(0, 2, 5, 3, 6, 1, 4, 7)
        .unsqueeze(6)
    )
    frames = patches.expand(*patches.shape[:6], TEMPORAL_PATCH_SIZE, PATCH_SIZE, PATCH_SIZE)
    return frames.reshape(len(pictures) * GRID_SIDE**2, -1)


def pretrain(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: Qwen2Tokenizer,
    *,
    steps: int,
    on_progress: ProgressCallback | None = None,
) -> float:
    """Train all weights in place for `steps` batches of fresh drawings; gives the last batch's mean loss.

    `on_progress` gets (finished steps, `steps`, loss) after each step.
    """
    encoder = TaskEncoder(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    loss_value = math.nan
    model.train()
    for step, samples in enumerate(_training_batches(steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = model(**encoder.encode(samples)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss_value = float(loss.detach())
        if on_progress is not None:
            on_progress(step + 1, steps, loss_value)
    return loss_value


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up over 100 steps times a cosine from the peak down to 3 % of it (`step` counts from 0)."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    share = FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * cosine
    return PEAK_LEARNING_RATE * warmup * share


def score_tasks(
    model: Qwen3VLForConditionalGeneration, tokenizer: Qwen2Tokenizer, *, samples_per_task: int
) -> dict[TaskName, float]:
    """Share of held-out drawings whose whole answer greedy decoding would give, by task (0..1).

    One forward pass is enough: greedy decoding repeats an answer exactly when each of its tokens is the most
    likely one after the true tokens before it.
    """
    encoder = TaskEncoder(tokenizer)
    model.eval()
    with torch.inference_mode():
        return {task: _score_task(model, encoder, task, samples_per_task) for task in PROMPTS}


def _score_task(model: Qwen3VLForConditionalGeneration, encoder: TaskEncoder, task: TaskName, count: int) -> float:
    correct = 0
    for samples in _chunks(draw_sample(HELD_OUT_FIRST_INDEX + i, task) for i in range(count)):
        batch = encoder.encode(samples)
        predicted = model(**batch).logits[:, :-1].argmax(-1)
        expected = batch["labels"][:, 1:]
        correct += int(((predicted == expected) | (expected == _IGNORED_LABEL)).all(dim=1).sum())
    return correct / count


def _training_batches(steps: int) -> Iterator[list[DrawnSample]]:
    for step in range(steps):
        first = PRETRAINING_FIRST_INDEX + step * BATCH_SIZE
        yield [draw_sample(index) for index in range(first, first + BATCH_SIZE)]


def _chunks(samples: Iterable[DrawnSample]) -> Iterator[list[DrawnSample]]:
    chunk: list[DrawnSample] = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) == SCORING_BATCH_SIZE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _pad(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
