"""How probable a model finds each label as its answer: confidence for classification.

The probability of a label is that of the answer which is exactly this label: the log-probabilities of its tokens and of
the end of the turn, given the prompt, summed. Because the end belongs to it, no label's answer is the beginning of
another's, and no normalisation by length is needed (Brown et al. 2020, section 2.4, divide by length because their
completions have no end). The probabilities are then divided by their sum: given that the answer is one of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftproject.engine.backends.base import EngineError, RowError
from ftproject.engine.encoding import IGNORED, EncodedRow
from ftproject.engine.generation import free_memory
from ftproject.engine.models import is_out_of_memory

if TYPE_CHECKING:
    from ftproject.engine.backends.base import LoadedModel
    from ftproject.engine.conversations import ResolvedConversation


def score_labels(
    model: LoadedModel,
    rows: Sequence[ResolvedConversation],
    spellings: Mapping[str, str],
    *,
    adapter: Path | None,
    batch_size: int,
) -> list[dict[str, float] | None]:
    """For each row, the probability of every label among the labels, which sum to 1.

    `spellings` says how each label is written: a model that learned "Yes" finds "yes" improbable. Batches are halved
    when memory runs out. A row that cannot be encoded with every label, or does not fit alone, is null.
    """
    answers = [
        replace(row, conversation=replace(row.conversation, response=text))
        for row in rows
        for text in spellings.values()
    ]
    scores: list[float | None] = []
    size = max(1, batch_size)
    while len(scores) < len(answers):
        batch = answers[len(scores) : len(scores) + size]
        found, size = _score(model, batch, adapter, size)
        scores += found
    count = len(spellings)
    parts = [scores[start : start + count] for start in range(0, len(scores), count)]
    return [_normalised_if_whole(spellings, part) for part in parts]


def _score(
    model: LoadedModel, batch: Sequence[ResolvedConversation], adapter: Path | None, size: int
) -> tuple[list[float | None], int]:
    """The log-probabilities of a batch, null for an answer that cannot have one, and the size of the next batch."""
    try:
        return list(model.answer_log_probabilities(batch, adapter=adapter)), size
    except RowError:
        smaller = size
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, EngineError) or not is_out_of_memory(error):
            raise
        smaller = max(1, len(batch) // 2)
    free_memory()
    if len(batch) == 1:
        return [None], smaller
    found: list[float | None] = []
    half = (len(batch) + 1) // 2
    for part in (batch[:half], batch[half:]):
        scores, after = _score(model, part, adapter, smaller)
        found, smaller = found + scores, min(smaller, after)
    return found, smaller


def _normalised_if_whole(labels: Iterable[str], scores: Sequence[float | None]) -> dict[str, float] | None:
    whole = [score for score in scores if score is not None]
    return normalised(dict(zip(labels, whole, strict=True))) if len(whole) == len(scores) else None


def cut_after_end(row: EncodedRow, end_ids: Collection[int]) -> EncodedRow:
    """The row up to the token that ends its answer: templates put a newline behind, which no model generates."""
    ends = (place for place, label in enumerate(row.labels) if label in end_ids)
    length = next(ends, len(row) - 1) + 1
    return replace(row, input_ids=row.input_ids[:length], labels=row.labels[:length])


def log_probabilities_of_answers(model: Any, inputs: Mapping[str, Any], rows: Sequence[EncodedRow]) -> list[float]:
    """Of each row the sum over its answer's tokens of log p(token | all before), natural logarithm, in float32.

    `inputs` are the rows left-padded, so that every answer ends in the last column and only the logits of the longest
    answer are computed: those of a whole prompt are 150,000 numbers a token.
    """
    import torch

    lengths = [sum(label != IGNORED for label in row.labels) for row in rows]
    longest = max(lengths)
    logits = model(**inputs, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1].float()
    targets = inputs["input_ids"][:, -longest:].unsqueeze(-1)
    chosen = torch.log_softmax(logits, dim=-1).gather(-1, targets).squeeze(-1).double()
    return [float(line[longest - length :].sum()) for line, length in zip(chosen, lengths, strict=True)]


def normalised(log_probabilities: Mapping[str, float]) -> dict[str, float]:
    """Probabilities that sum to 1 from log-probabilities, however small.

    >>> normalised({"no": -1000.0, "yes": -1000.0})
    {'no': 0.5, 'yes': 0.5}
    """
    largest = max(log_probabilities.values())
    weights = {label: math.exp(value - largest) for label, value in log_probabilities.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}
