"""The figures of a run from its stored samples: a page at a time, equal to those of one list, in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from datasets_app.models import Dataset
from evaluation_app import scoring
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.scoring import SampleWriter, spellings_of, summarise
from ftproject.engine.backends.base import Generation
from ftproject.engine.classification import classify
from ftproject.engine.conversations import Conversation
from ftproject.engine.labels import Spellings
from ftproject.engine.metrics import RunTotals, parse_scoring_options
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
ANSWERS = [("yes", "yes"), ("no", "yes"), ("perhaps", "no"), ("No.", "no"), ("TRUE", "yes"), ("yes and no", "no")]


@pytest.fixture
def make_run(make_dataset: Callable[..., Dataset], make_adapter: Callable[..., Adapter]) -> Callable[..., Any]:
    """A run over yes-or-no rows, the first three of them seen in training, with its answers stored."""

    def make(**fields: Any) -> EvaluationRun:
        dataset = make_dataset([(f"p{n}", truth, "x") for n, (_, truth) in enumerate(ANSWERS)])
        run = EvaluationRun.objects.create(
            dataset=dataset,
            mapping=dataset.mappings.get(),
            adapter=make_adapter(dataset),
            model_type="finetuned",
            model_name="tiny-qwen3-vl",
            **fields,
        )
        writer = SampleWriter(run, ["no", "yes"] if run.eval_mode == "classification" else [], {0, 1, 2})
        samples = [
            writer.answered(Conversation(index, "p", truth, truth), Generation(answer, 1, 1, "stop", 1.0))
            for index, (answer, truth) in enumerate(ANSWERS)
        ]
        Sample.objects.bulk_create([*samples, writer.skipped(Conversation(6, "p", "no", "no"), "no image")])
        return run

    return make


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_figures_do_not_depend_on_the_page(
    make_run: Callable[..., EvaluationRun], page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = parse_scoring_options(["cer", "chrf", "rouge_l", "anls"], {"casefold": True})
    run = make_run(metric_options=options.to_dict(), eval_mode="classification", positive_label="no")
    monkeypatch.setattr(scoring, "PAGE", page)
    figures, warnings = summarise(run)
    assert (figures["num_samples"], figures["num_skipped"]) == (7, 1)
    assert [figures["metrics"][part]["num_samples"] for part in ("all", "seen", "unseen")] == [7, 3, 4]
    rows = [options.score(*pair) for pair in ANSWERS]
    edits = sum(row.details["cer"]["edits"] for row in rows)
    assert figures["metrics"]["all"]["cer"] == pytest.approx(edits / sum(len(truth) for _, truth in ANSWERS))
    for name in ("chrf", "rouge_l", "anls"):
        values = [row.values[name] for row in rows]
        assert figures["metrics"]["all"][name] == pytest.approx(sum(filter(None, values)) / 6)
        assert figures["metrics"]["unseen"][name] == pytest.approx(sum(filter(None, values[3:])) / 3)
    assert warnings == []


def test_classification_figures_are_those_of_the_whole_lists(make_run: Callable[..., EvaluationRun]) -> None:
    run = make_run(eval_mode="classification", positive_label="no")
    found = summarise(run)[0]["metrics"]["classification"]
    expected = classify([a for a, _ in ANSWERS], [t for _, t in ANSWERS], positive_label="no").to_dict()
    assert {name: found[name] for name in expected} == expected
    seen = classify([a for a, _ in ANSWERS[:3]], [t for _, t in ANSWERS[:3]], positive_label="no").to_dict()
    assert found["seen"]["confusion_matrix"] == seen["confusion_matrix"]


def test_a_run_from_before_this_release_is_summed_up_as_then(make_run: Callable[..., EvaluationRun]) -> None:
    run = make_run(metric_options={})
    Sample.objects.filter(run=run).update(scores={}, score_details={})
    figures, _ = summarise(run)
    assert figures["exact_match_accuracy"] == pytest.approx(1 / 6)
    assert figures["metrics"]["all"]["details"] == {}
    assert figures["metrics"]["classification"] is None


def test_memory_does_not_grow_with_the_rows() -> None:
    options = parse_scoring_options(["cer", "numeric", {"name": "json_fields"}])

    def peak(rows: int) -> int:
        score = options.score('{"a": 1, "b": "x"}', '{"a": 1, "b": "y"}')
        totals = RunTotals(options)
        tracemalloc.start()
        for _ in range(rows):
            totals.add(score.overlap, score.values, score.details)
        totals.figures()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(20_000) < peak(200) + 20_000


def test_a_nul_in_an_answer_is_stored_as_the_replacement_character(make_run: Callable[..., EvaluationRun]) -> None:
    writer = SampleWriter(make_run(), [], None)
    sample = writer.answered(Conversation(9, "p", "a", "a"), Generation("a\0b", 1, 1, "stop", 1.0))
    assert sample.prediction == "a\N{REPLACEMENT CHARACTER}b"


def test_labels_are_asked_as_the_dataset_writes_them(make_run: Callable[..., EvaluationRun]) -> None:
    options = parse_scoring_options(None, {"extract": "Answer: (.*)"}, confidence=True)
    run = make_run(metric_options=options.to_dict(), eval_mode="classification")
    truths = ["Answer: Yes", "Answer: Yes", "Answer: yes", "Answer: no"]
    assert spellings_of(run, ["no", "yes"], truths) == {"no": "Answer: no", "yes": "Answer: Yes"}
    assert spellings_of(run, [], truths) == {}
    run.metric_options = {}
    assert spellings_of(run, ["no", "yes"], truths) == {}


def test_spellings_of_a_label_are_bounded_and_ties_have_one_answer() -> None:
    def truths() -> Iterator[str]:
        yield from (f"{' ' * n}b" for n in range(3))
        yield from ("B", "A", "a")
        yield from (f"a{'!' * n}" for n in range(500))

    spellings = Spellings(["a", "b", "c"])
    for truth in truths():
        spellings.add(truth)
    assert spellings.most_frequent() == {"a": "a", "b": "b", "c": "c"}
