"""Earlier answers of the same base model to the same rows: found by an exact key, copied, and marked as copied."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet

from evaluation_app.models import EvaluationRun, Sample
from ftproject.engine.backends.base import Generation
from ftproject.engine.configs import EVALUATION_GENERATION, parse_generation_params
from ftproject.engine.conversations import ResolvedConversation, messages_of

# Count up when this code would make a model answer the same row in another way.
ANSWER_VERSION = 1
KEYS_A_QUERY = 500
COPIED = ("prediction", "prompt_tokens", "completion_tokens", "finish_reason")


@dataclass(frozen=True)
class EarlierAnswer:
    run_id: int
    answer: Generation


def base_key(run: EvaluationRun, facts: Mapping[str, Any]) -> str | None:
    """What all answers of the run have in common, hashed; None where an answer is not the base's alone or is drawn.

    The facts name the weights' hash, the backend, the device, how the base is loaded (pixels, precision) and the
    versions of what computes. Of the generation settings only the length matters to a greedy answer. The batch size
    does not: answers are independent of it.
    """
    params = parse_generation_params(run.generation_params, EVALUATION_GENERATION)
    if run.adapter_id is not None or not params.greedy:
        return None
    content = {"version": ANSWER_VERSION, "facts": dict(facts), "max_new_tokens": params.max_new_tokens}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def answer_key(base: str, row: ResolvedConversation) -> str:
    """The key of one row: what is asked, as the model is asked it, with its images by the sha256 of their bytes.

    The dataset is no part of it: the same question has the same answer in a table with corrected ground truths.
    """
    messages = json.dumps(messages_of(row.conversation, with_response=False), sort_keys=True)
    return hashlib.sha256(f"{base}\0{messages}".encode("utf-8", "surrogatepass")).hexdigest()


class EarlierAnswers:
    """Looks up rows among the samples of other runs, finished or not."""

    def __init__(self, run: EvaluationRun, facts: Mapping[str, Any]) -> None:
        self.run = run
        self.base = base_key(run, facts)
        # A copied answer has no label probabilities: a run that asks for them computes every row.
        self.wanted = run.reuse_base_predictions and not run.metric_options.get("confidence")

    def key_of(self, row: ResolvedConversation) -> str:
        """Empty for a row whose answer nobody may copy."""
        return "" if self.base is None else answer_key(self.base, row)

    def find(self, rows: Sequence[ResolvedConversation]) -> dict[int, EarlierAnswer]:
        """The newest earlier answer of each row that has one, by row number."""
        if self.base is None or not self.wanted:
            return {}
        keys = {row.conversation.index: self.key_of(row) for row in rows}
        known = dict(self._stored(sorted(set(keys.values()))))
        return {index: known[key] for index, key in keys.items() if key in known}

    def _stored(self, keys: Sequence[str]) -> Iterator[tuple[str, EarlierAnswer]]:
        for start in range(0, len(keys), KEYS_A_QUERY):
            found = self.samples(keys[start : start + KEYS_A_QUERY]).values_list("answer_key", "run_id", *COPIED)
            for key, run_id, text, asked, answered, reason in found:
                yield key, EarlierAnswer(run_id, Generation(text, asked or 0, answered or 0, reason or "stop", 0.0))

    def samples(self, keys: Sequence[str]) -> QuerySet[Sample]:
        """Other runs' samples with these keys, oldest first."""
        # The second condition is the index's own: SQLite takes a partial index only when it reads it literally.
        found = Sample.objects.filter(answer_key__in=keys).exclude(answer_key="")
        return found.filter(skipped=False).exclude(run_id=self.run.pk).order_by("id")
