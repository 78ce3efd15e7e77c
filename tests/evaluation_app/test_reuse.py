"""Answers of the base are copied from earlier runs by an exact key: every part of it matters, and nothing else."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app import loading, reuse
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.reuse import EarlierAnswers, answer_key, base_key
from evaluation_app.runner import execute_evaluation
from ftproject.core.jobs import claim_job, stop_job
from ftproject.engine import fingerprints
from ftproject.engine.backends.fake import FakeBackend
from ftproject.engine.conversations import Conversation, ResolvedConversation
from tests.evaluation_app.conftest import rows_of
from tests.evaluation_app.test_runner import PowerCutError, Work, fail_after, start
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
MakeDataset = Callable[..., Dataset]

FACTS: dict[str, Any] = {
    "model": "tiny-qwen3-vl",
    "weights": "sha256:aa",
    "backend": "transformers",
    "device": "cpu",
    "settings": {"load_in_4bit": False, "min_pixels": None, "max_pixels": None},
    "versions": {"torch": "2.13.0"},
}


def a_run(**fields: Any) -> EvaluationRun:
    return EvaluationRun(**{"generation_params": {"max_new_tokens": 8, "do_sample": False}, **fields})


def a_row(**fields: Any) -> ResolvedConversation:
    given = {"index": 0, "prompt": "What is it?", "response": "7", "ground_truth": "7", "images": ("sha256:a",)}
    return ResolvedConversation(Conversation(**{**given, **fields}))


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "another"},
        {"weights": "sha256:bb"},
        {"backend": "unsloth"},
        {"device": "NVIDIA H200"},
        {"settings": {**FACTS["settings"], "max_pixels": 4096}},
        {"settings": {**FACTS["settings"], "load_in_4bit": True}},
        {"versions": {"torch": "2.14.0"}},
        {"versions": {"torch": "2.13.0", "bitsandbytes": "0.50"}},
    ],
    ids=str,
)
def test_every_fact_of_the_base_is_part_of_the_key(changed: dict[str, Any]) -> None:
    assert base_key(a_run(), {**FACTS, **changed}) != base_key(a_run(), FACTS)


def test_the_length_of_the_answer_is_part_of_the_key() -> None:
    longer = a_run(generation_params={"max_new_tokens": 9, "do_sample": False})
    assert base_key(longer, FACTS) != base_key(a_run(), FACTS)


def test_the_codes_version_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = base_key(a_run(), FACTS)
    monkeypatch.setattr(reuse, "ANSWER_VERSION", 2)
    assert base_key(a_run(), FACTS) != before


def test_settings_that_a_greedy_answer_does_not_depend_on_are_not() -> None:
    other = {"max_new_tokens": 8, "do_sample": False, "temperature": 0.9, "top_p": 0.5, "seed": 3}
    assert base_key(a_run(generation_params=other), FACTS) == base_key(a_run(), FACTS)


@pytest.mark.parametrize(
    "fields",
    [
        {"generation_params": {"max_new_tokens": 8, "do_sample": True, "temperature": 0.7}},
        {"adapter_id": 3},
    ],
    ids=["drawn", "fine-tuned"],
)
def test_drawn_answers_and_those_of_adapters_have_no_key(fields: dict[str, Any]) -> None:
    assert base_key(a_run(**fields), FACTS) is None
    assert EarlierAnswers(a_run(**fields), FACTS).key_of(a_row()) == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"prompt": "What is it? "},
        {"prompt": "what is it?"},
        {"images": ("sha256:b",)},
        {"images": ()},
        {"images": ("sha256:a", "sha256:a")},
    ],
    ids=str,
)
def test_the_prompt_and_every_image_are_part_of_a_rows_key(changed: dict[str, Any]) -> None:
    assert answer_key("base", a_row(**changed)) != answer_key("base", a_row())


def test_the_order_of_the_images_is_part_of_it() -> None:
    one, other = a_row(images=("sha256:a", "sha256:b")), a_row(images=("sha256:b", "sha256:a"))
    assert answer_key("base", one) != answer_key("base", other)


@pytest.mark.parametrize("changed", [{"index": 5}, {"ground_truth": "8", "response": "8"}], ids=str)
def test_where_a_row_stands_and_what_would_be_right_is_not(changed: dict[str, Any]) -> None:
    assert answer_key("base", a_row(**changed)) == answer_key("base", a_row())


def test_lone_surrogates_have_a_key() -> None:
    assert len(answer_key("base", a_row(prompt="\ud800"))) == 64


def test_the_second_run_of_a_base_copies_every_answer_and_loads_nothing(
    api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(api)
    work()
    monkeypatch.setattr(FakeBackend, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    loading.let_go()
    second = start(api)
    work()
    first.refresh_from_db()
    second.refresh_from_db()
    assert (second.status, second.num_samples, second.num_skipped) == ("completed", 10, 1)
    assert (second.num_reused, second.reused_from) == (9, [first.pk])
    columns = ("index", "prediction", "prompt_tokens", "completion_tokens", "finish_reason", "exact_match", "token_f1")
    assert list(second.samples.values_list(*columns)) == list(first.samples.values_list(*columns))
    assert set(second.samples.filter(skipped=False).values_list("reused", flat=True)) == {True}
    assert not second.samples.get(index=3).reused
    facts = api.get(f"/api/evaluation/runs/{second.pk}").json()
    assert (facts["num_reused"], facts["reused_from"], facts["engine_facts"]["backend"]) == (9, [first.pk], "fake")


def test_it_can_be_turned_off(api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    start(api)
    work()
    asked = fail_after(99, PowerCutError(), monkeypatch)
    start(api, reuse_base_predictions=False)
    (run,) = work()
    assert (run.num_reused, run.reused_from, len(asked)) == (0, [], 9)
    assert not run.samples.filter(reused=True).exists()


def test_a_run_that_asks_for_confidence_computes_every_row(dataset: Dataset) -> None:
    confident = a_run(metric_options={"confidence": True})
    assert not EarlierAnswers(confident, FACTS).wanted
    assert EarlierAnswers(a_run(), FACTS).wanted


def test_the_copies_stand_when_their_source_is_deleted(
    api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(api)
    work()
    second = start(api)
    work()
    assert api.delete(f"/api/evaluation/runs/{first.pk}").status_code == 200
    second.refresh_from_db()
    assert (second.samples.count(), second.reused_from) == (10, [first.pk])
    third = start(api)
    work()
    third.refresh_from_db()
    assert (third.num_reused, third.reused_from) == (9, [second.pk])


def test_rows_of_an_interrupted_run_are_copied_and_the_rest_computed(
    api: APIClient, dataset: Dataset, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(api)
    with monkeypatch.context() as patch:
        done = fail_after(1, PowerCutError(), patch)
        assert claim_job(first)
        with pytest.raises(PowerCutError):
            execute_evaluation(first, lambda: False)
    stop_job(first)
    EvaluationRun.objects.filter(pk=first.pk).update(status="error")
    asked = fail_after(99, PowerCutError(), monkeypatch)
    second = start(api)
    work()
    second.refresh_from_db()
    assert (second.num_reused, second.reused_from) == (4, [first.pk])
    assert sorted(asked + done) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert sorted(second.samples.filter(reused=True).values_list("index", flat=True)) == sorted(done)


def test_a_copied_row_is_judged_by_this_runs_ground_truth(
    api: APIClient, make_dataset: MakeDataset, work: Work
) -> None:
    make_dataset([("p", "wrong", "n")])
    start(api)
    (first,) = work()
    answer = first.samples.get().prediction
    make_dataset([("q", "z", "n"), ("p", answer, "n")], name="corrected.csv")
    start(api)
    (second,) = work()
    sample = second.samples.get(index=1)
    assert (sample.reused, sample.prediction, sample.exact_match) == (True, answer, True)
    assert (second.num_reused, second.samples.get(index=0).reused) == (1, False)


def test_an_adapters_answers_are_never_copied_nor_taken_for_the_bases(
    api: APIClient, adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(api, adapter_path=adapter.name)
    work()
    assert not Sample.objects.exclude(answer_key="").exists()
    asked = fail_after(99, PowerCutError(), monkeypatch)
    start(api, adapter_path=adapter.name)
    start(api, split_adapter=adapter.name)
    again, base = work()
    assert (again.num_reused, base.num_reused, len(asked)) == (0, 0, 18)


@pytest.mark.parametrize(
    ("target", "name", "other"),
    [
        (fingerprints, "_file_digest", lambda *_: "other"),
        (loading, "package_versions", lambda: {"torch": "9"}),
    ],
    ids=["weights", "versions"],
)
def test_other_weights_or_versions_copy_nothing(
    api: APIClient,
    dataset: Dataset,
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    target: Any,
    name: str,
    other: Callable[..., Any],
) -> None:
    start(api)
    work()
    monkeypatch.setattr(target, name, other)
    start(api)
    (run,) = work()
    assert (run.status, run.num_reused) == ("completed", 0)


def test_another_length_copies_nothing_and_the_same_one_later_does(
    api: APIClient, dataset: Dataset, work: Work
) -> None:
    start(api, generation_params={"max_new_tokens": 5})
    start(api, generation_params={"max_new_tokens": 6})
    start(api, generation_params={"max_new_tokens": 5, "temperature": 1.5})
    assert [run.num_reused for run in work()] == [0, 0, 9]


def test_a_skipped_row_is_no_answer(api: APIClient, make_dataset: MakeDataset, work: Work) -> None:
    rows: Sequence[tuple[str, str, str]] = [("p", "a", ""), ("q", "a", "n")]
    make_dataset(rows, mandatory_columns=["note"])
    start(api)
    work()
    make_dataset([(prompt, truth, "n") for prompt, truth, _ in rows], name="filled.csv", mandatory_columns=["note"])
    start(api)
    (run,) = work()
    assert (run.num_reused, rows_of(run)) == (1, [0, 1])
    assert not run.samples.get(index=0).reused


def test_a_resumed_run_goes_on_counting_what_was_copied(
    api: APIClient, make_dataset: MakeDataset, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset([(f"p{n}", "a", "n") for n in range(4)])
    start(api)
    work()
    make_dataset([(f"p{n}", "a", "n") for n in range(12)], name="longer.csv")
    run = start(api)
    with monkeypatch.context() as patch:
        fail_after(1, PowerCutError(), patch)
        assert claim_job(run)
        with pytest.raises(PowerCutError):
            execute_evaluation(run, lambda: False)
    assert run.finish("error", error="killed")
    api.post(f"/api/evaluation/runs/{run.pk}/resume", {}, format="json")
    work()
    run.refresh_from_db()
    assert (run.num_reused, run.samples.filter(reused=True).count(), run.num_samples) == (4, 4, 12)


def test_the_search_uses_the_index_of_answer_keys(api: APIClient, dataset: Dataset, work: Work) -> None:
    start(api)
    (run,) = work()
    assert "sample_by_answer_key" in EarlierAnswers(run, FACTS).samples(["a" * 64, "b" * 64]).explain()
