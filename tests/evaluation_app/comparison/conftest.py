"""Finished runs with given answers, scored as a run scores them; no model is needed to compare."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from datasets_app.selectors import iter_rows, row_mapping
from evaluation_app.models import EvaluationRun, Sample
from ftproject.engine.classification import classify, known_labels, parse_label
from ftproject.engine.conversations import build_conversation
from ftproject.engine.metrics import ScoringOptions, parse_scoring_options
from training_app.models import Adapter
from training_app.selectors import trained_row_numbers

MakeRun = Callable[..., EvaluationRun]
SKIP = None
GREEDY = {"max_new_tokens": 256, "temperature": 0.1, "top_p": 0.9, "min_p": 0.0, "do_sample": False, "seed": None}


@pytest.fixture
def make_run() -> MakeRun:
    """A completed run; `answers` by row number, SKIP for a skipped row; rows that are not named are not in the run."""

    def make(
        dataset: Dataset,
        answers: Mapping[int, str | None] | Sequence[str | None],
        *,
        adapter: Adapter | None = None,
        metrics: Sequence[Any] = (),
        normalization: Mapping[str, Any] | None = None,
        classification: bool = False,
        reused: bool = False,
        **fields: Any,
    ) -> EvaluationRun:
        by_row = answers if isinstance(answers, Mapping) else dict(enumerate(answers))
        options = parse_scoring_options(metrics, normalization)
        mapping = fields.pop("mapping", None) or dataset.mappings.latest("version")
        run = EvaluationRun.objects.create(**{
            "dataset": dataset,
            "mapping": mapping,
            "adapter": adapter,
            "split_adapter": adapter,
            "model_type": "finetuned" if adapter else "base",
            "model_name": "tiny-qwen3-vl",
            "backend": "fake",
            "device": "cpu",
            "status": "completed",
            "eval_mode": "classification" if classification else "token",
            "metric_options": options.to_dict(),
            "generation_params": GREEDY,
            "num_samples": len(by_row),
            "num_skipped": sum(answer is SKIP for answer in by_row.values()),
            **fields,
        })  # fmt: skip
        seen = seen_by(adapter, dataset)
        rows = dict(iter_rows(dataset=dataset))
        conversations = {index: build_conversation(index, rows[index], row_mapping(mapping)) for index in by_row}
        truths = [conversations[index].ground_truth for index, answer in by_row.items() if answer is not SKIP]
        labels = known_labels(truths) if classification else []
        samples = []
        for index, answer in sorted(by_row.items()):
            talk = conversations[index]
            sample = Sample(run=run, index=index, prompt=talk.prompt, ground_truth=talk.ground_truth, reused=reused)
            sample.seen_in_training = None if seen is None else index in seen
            scored(sample, answer, options, labels)
            samples.append(sample)
        Sample.objects.bulk_create(samples)
        if classification:
            answered = [answer for _, answer in sorted(by_row.items()) if answer is not SKIP]
            run.metrics = {"classification": classify(answered, truths).to_dict()}
            run.save()
        return run

    return make


def seen_by(adapter: Adapter | None, dataset: Dataset) -> set[int] | None:
    if adapter is None or adapter.run is None or adapter.run.dataset_id != dataset.pk:
        return None
    return trained_row_numbers(adapter=adapter)


def scored(sample: Sample, answer: str | None, options: ScoringOptions, labels: Sequence[str]) -> None:
    if answer is SKIP:
        sample.skipped, sample.skipped_reason = True, "no image"
        return
    scores = options.score(answer, sample.ground_truth)
    sample.prediction, sample.scores, sample.score_details = answer, scores.values, scores.details
    sample.label = parse_label(answer, labels) if labels else None
    for name in ("exact_match", "token_precision", "token_recall", "token_f1"):
        setattr(sample, name, getattr(scores.overlap, name))


@pytest.fixture
def numbers(make_dataset: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """A dataset of `rows` rows whose truth is the row's number."""

    def make(rows: int, **options: Any) -> Dataset:
        return make_dataset([(f"What is {n}?", f"{n}", f"note {n}") for n in range(rows)], **options)

    return make


def answers_right_in(right: Sequence[int] | range, rows: int) -> list[str]:
    """The right answer in these rows, a wrong one in the others."""
    chosen = set(right)
    return [str(n) if n in chosen else "wrong" for n in range(rows)]


@pytest.fixture
def compare(api: APIClient) -> Callable[..., dict[str, Any]]:
    def compare(baseline: EvaluationRun, candidate: EvaluationRun, **options: Any) -> dict[str, Any]:
        body = {"baseline_run_id": baseline.pk, "candidate_run_id": candidate.pk, "num_resamples": 200, **options}
        response = api.post("/api/evaluation/compare", body, format="json")
        assert response.status_code == 200, response.content
        answer: dict[str, Any] = response.json()
        return answer

    return compare


def codes_of(answer: Mapping[str, Any]) -> set[str]:
    return {warning["code"] for warning in answer["warnings"]}
