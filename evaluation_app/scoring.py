"""Turns answers into samples, and the samples of a run into its figures."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from evaluation_app.classification_figures import classification_figures
from evaluation_app.models import EvaluationRun, Sample
from ftproject.engine.backends.base import Generation
from ftproject.engine.classification import known_labels, parse_label
from ftproject.engine.conversations import Conversation
from ftproject.engine.labels import Spellings
from ftproject.engine.metrics import RunTotals, SampleScore, ScoringOptions

SCORE_FIELDS = ("exact_match", "token_precision", "token_recall", "token_f1")
RUN_FIELDS = ("num_samples", "num_skipped", "exact_match_accuracy", "token_precision", "token_recall", "token_f1")
# Rows of a page are in memory together; one cursor over all would pin SQLite's log for as long as it is open.
PAGE = 2000


@dataclass(frozen=True)
class SampleWriter:
    """Makes the samples of one run; `labels` is empty outside classification, `seen` None when nobody can tell."""

    run: EvaluationRun
    labels: Sequence[str]
    seen: Container[int] | None

    @cached_property
    def options(self) -> ScoringOptions:
        return ScoringOptions.from_dict(self.run.metric_options)

    def answered(
        self, conversation: Conversation, answer: Generation, probabilities: Mapping[str, float] | None = None
    ) -> Sample:
        """The scored sample; `probabilities` of each label when the run asks for confidence."""
        # PostgreSQL stores no NUL, and a byte-level tokenizer can produce one.
        text = answer.text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        scores = self.options.score(text, conversation.ground_truth)
        sample = self._sample(conversation)
        sample.prediction = text
        label = parse_label(self.options.label_text(text), self.labels) if self.labels else None
        sample.label = label[:200] if label else None
        sample.scores, sample.score_details = scores.values, scores.details
        if probabilities is not None:
            sample.label_probabilities = dict(probabilities)
            sample.confidence = probabilities.get(label or "")
        sample.prompt_tokens = answer.prompt_tokens
        sample.completion_tokens = answer.completion_tokens
        sample.finish_reason = answer.finish_reason
        for name in SCORE_FIELDS:
            setattr(sample, name, getattr(scores.overlap, name))
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


def labels_of(run: EvaluationRun, ground_truths: Iterable[str]) -> list[str]:
    """The labels of a run with these ground truths, ascending; none outside classification."""
    if run.eval_mode != EvaluationRun.EvalMode.CLASSIFICATION:
        return []
    options = ScoringOptions.from_dict(run.metric_options)
    return known_labels(map(options.label_text, ground_truths))


def spellings_of(run: EvaluationRun, labels: Sequence[str], ground_truths: Iterable[str]) -> dict[str, str]:
    """How each label is mostly written, for a run that asks for confidence; empty for every other."""
    options = ScoringOptions.from_dict(run.metric_options)
    if not options.confidence or not labels:
        return {}
    spellings = Spellings(labels)
    for truth in ground_truths:
        spellings.add(truth, label_text=options.label_text(truth))
    return spellings.most_frequent()


class RunParts:
    """The totals of all rows, of those that training saw and of those that it did not."""

    def __init__(self, options: ScoringOptions) -> None:
        self.all, self.seen, self.unseen = RunTotals(options), RunTotals(options), RunTotals(options)

    def add(
        self,
        overlap: SampleScore,
        seen: bool | None,
        values: Mapping[str, float | None],
        details: Mapping[str, Mapping[str, Any]],
    ) -> None:
        for totals in (self.all, *self.part_of(seen)):
            totals.add(overlap, values, details)

    def part_of(self, seen: bool | None) -> list[RunTotals]:
        if seen is None:
            return []
        return [self.seen if seen else self.unseen]

    def figures(self) -> dict[str, Any]:
        """Seen and unseen are null when nobody can tell for any row."""
        known = self.seen.rows + self.unseen.rows
        return {
            "all": self.all.figures(),
            "seen": self.seen.figures() if known else None,
            "unseen": self.unseen.figures() if known else None,
        }


def summarise(run: EvaluationRun) -> tuple[dict[str, Any], list[str]]:
    """The run's result columns and what to warn of; every mean is over evaluated rows, undefined ones are null."""
    options = ScoringOptions.from_dict(run.metric_options)
    parts = RunParts(options)
    for *scores, seen, values, details in sample_pages(
        run, *SCORE_FIELDS, "seen_in_training", "scores", "score_details"
    ):
        parts.add(SampleScore(*scores), seen, values, details)
    classification, warnings = classification_figures(run, options, sample_pages)
    figures = parts.figures()
    overall = figures["all"]
    metrics = {**figures, "classification": classification}
    warnings = [*warnings_of(run, parts), *warnings]
    return {**{name: overall[name] for name in RUN_FIELDS}, "metrics": metrics}, warnings


def sample_pages(run: EvaluationRun, *names: str, **filters: Any) -> Iterator[tuple[Any, ...]]:
    """These columns of the run's samples by index, a page a query."""
    last = -1
    samples = Sample.objects.filter(run=run, **filters).order_by("index")
    while page := list(samples.filter(index__gt=last).values_list("index", *names)[:PAGE]):
        for _, *values in page:
            yield tuple(values)
        last = page[-1][0]


def warnings_of(run: EvaluationRun, parts: RunParts) -> list[str]:
    """What a reader of the figures must know before believing them."""
    evaluated = parts.all.evaluated
    if not evaluated:
        return [f"All {parts.all.rows} rows were skipped: there is nothing to judge."]
    warnings = []
    if run.adapter_id is not None and parts.seen.evaluated == evaluated:
        warnings.append(
            f"The adapter was trained on every one of the {evaluated} evaluated rows: the figures say how well it "
            "remembers, not how well it does on rows that it has not seen."
        )
    undefined = [name for name, totals in parts.all.metrics.items() if totals.undefined == evaluated]
    warnings += [f"{name} is undefined for each of the {evaluated} evaluated rows." for name in undefined]
    if parts.all.unmatched["prediction"] == evaluated:
        warnings.append("normalization.extract matches no prediction: whole texts were compared.")
    return warnings
