"""What to do when a training step does not fit into memory: the setting to lower, and the rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence

from ftproject.engine.encoding import EncodedRow
from ftproject.engine.hyperparameters import TrainingConfig

ROWS_SHOWN = 16


def memory_advice(config: TrainingConfig, rows: Sequence[EncodedRow], *, image_token_id: int) -> str:
    """Sentences: the first setting that helps without changing the result, then those that do, and the batch's rows."""
    longest = max((len(row) for row in rows), default=0)
    image_tokens = max((row.input_ids.count(image_token_id) for row in rows), default=0)
    advice = [*_gentle(config), *_harsh(config, longest, image_tokens)]
    return f"{'; or '.join(advice)}. {batch_words(rows, image_token_id)}"


def _gentle(config: TrainingConfig) -> list[str]:
    """Settings that leave the training what it is."""
    sft, advice = config.sft, []
    if sft.per_device_train_batch_size > 1:
        half = sft.per_device_train_batch_size // 2
        more = -(-sft.per_device_train_batch_size * sft.gradient_accumulation_steps // half)
        advice.append(
            f"lower per_device_train_batch_size from {sft.per_device_train_batch_size} to {half} "
            f"(gradient_accumulation_steps {more} keeps the size of a step)"
        )
    if not sft.gradient_checkpointing:
        advice.append("set gradient_checkpointing to true")
    if not config.model.load_in_4bit:
        advice.append("set load_in_4bit to true")
    return advice


def _harsh(config: TrainingConfig, longest: int, image_tokens: int) -> list[str]:
    """Settings that take something away from the rows."""
    if 2 * image_tokens > longest:
        at_present = config.model.max_pixels or "the model's own"
        return [f"lower max_pixels (now {at_present}): images take {image_tokens} of {longest} tokens"]
    return (
        [f"lower max_seq_length below {longest}, the longest row of the batch"] if longest else ["lower max_seq_length"]
    )


def batch_words(rows: Sequence[EncodedRow], image_token_id: int) -> str:
    """The rows of a batch with their lengths, as a sentence."""
    if not rows:
        return "It happened before the first batch."
    shown = [
        f"row {row.index}: {len(row)} tokens, {row.input_ids.count(image_token_id)} of them image"
        for row in rows[:ROWS_SHOWN]
    ]
    more = f"; and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
    return f"The failing batch: {'; '.join(shown)}{more}."
