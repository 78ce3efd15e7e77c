"""Turns answers into samples, and the samples of a run into its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluation_app.models import EvaluationRun, Sample
from ftproject.engine.backends.base import Generation
from ftproject.engine.classification import classify, parse_label
from ftproject.engine.conversations import Conversation
from ftproject.engine.metrics import SampleScore, aggregate, score_sample

SCORE_FIELDS = ("exact_match", "token_precision", "token_recall", "token_f1")
RUN_FIELDS = ("num_samples", "num_skipped", "exact_match_accuracy", "token_precision", "token_recall", "token_f1")


@dataclass(frozen=True)
class SampleWriter:
    """Makes the samples of one run; `labels` is empty outside classification, `seen` None when nobody can tell."""

    run: EvaluationRun
    labels: Sequence[str]
    seen: set[int] | None

    def answered(self, conversation: Conversation, answer: Generation) -> Sample:
        # PostgreSQL stores no NUL, and a byte-level tokenizer can produce one.
        text = answer.text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        score = score_sample(text, conversation.ground_truth)
        sample = self._sample(conversation)
        sample.prediction = text
        sample.label = self._label(text)
        sample.prompt_tokens = answer.prompt_tokens
        sample.completion_tokens = answer.completion_tokens
        sample.finish_reason = answer.finish_reason
        for name in SCORE_FIELDS:
            setattr(sample, name, getattr(score, name))
        return sample

    def skipped(self, conversation: Conversation, reason: str) -> Sample:
        sample = self._sample(conversation)
        sample.skipped, sample.skipped_reason = True, reason[:500]
        return sample

    def _sample(self, conversation: Conversation) -> Sample:
        return Sample(
            run=self.run,
            index=conversation.index,
            prompt=conversation.prompt,
            ground_truth=conversation.ground_truth,
            num_images=conversation.num_images,
            seen_in_training=None if self.seen is None else conversation.index in self.seen,
        )

    def _label(self, text: str) -> str | None:
        label = parse_label(text, self.labels) if self.labels else None
        return label[:200] if label else label


def summarise(run: EvaluationRun) -> tuple[dict[str, Any], list[str]]:
    """The run's result columns and what to warn of; every mean is over evaluated rows, undefined ones are null."""
    rows = list(Sample.objects.filter(run=run).order_by("index").values_list(*SCORE_FIELDS, "seen_in_training"))
    scored = [(SampleScore(*row[:4]), row[4]) for row in rows]
    overall = aggregate(score for score, _ in scored)
    classification, warnings = classification_figures(run)
    metrics = {
        "all": overall,
        "seen": part_figures(scored, seen=True),
        "unseen": part_figures(scored, seen=False),
        "classification": classification,
    }
    return {**{name: overall[name] for name in RUN_FIELDS}, "metrics": metrics}, warnings


def part_figures(scored: Sequence[tuple[SampleScore, bool | None]], *, seen: bool) -> dict[str, Any] | None:
    """The figures of the rows that training saw (or did not); null when that is unknown."""
    if all(known is None for _, known in scored):
        return None
    return aggregate(score for score, known in scored if known is seen)


def classification_figures(run: EvaluationRun) -> tuple[dict[str, Any] | None, list[str]]:
    if run.eval_mode != EvaluationRun.EvalMode.CLASSIFICATION:
        return None, []
    evaluated = Sample.objects.filter(run=run, skipped=False).order_by("index")
    pairs = list(evaluated.values_list("prediction", "ground_truth"))
    predictions, truths = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    try:
        return classify(predictions, truths, positive_label=run.positive_label).to_dict(), []
    except ValueError as exc:
        # The label is in the dataset (checked at the start) but in no evaluated row: the other figures still hold.
        return classify(predictions, truths).to_dict(), [str(exc)]
