"""POST /api/evaluation/compare: the paired table, the verdict, which rows were judged, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from datasets_app.services import mapping_set
from evaluation_app.models import EvaluationRun
from tests.evaluation_app.comparison.conftest import SKIP, MakeRun, answers_right_in, codes_of
from training_app.models import Adapter, AdapterMerge

pytestmark = pytest.mark.django_db
Compare = Callable[..., dict[str, Any]]


def refused(api: APIClient, **body: Any) -> tuple[int, dict[str, Any]]:
    response = api.post("/api/evaluation/compare", body, format="json")
    assert response["Content-Type"] == "application/problem+json"
    return response.status_code, response.json()


def test_the_paired_table_says_who_was_right_where(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(10)
    base = make_run(dataset, answers_right_in([0, 1, 2, 3], 10))
    other = make_run(dataset, answers_right_in([0, 1, 4, 5, 6], 10))
    answer = compare(base, other)
    assert answer["transitions"] == {"fixed": 3, "broken": 2, "both_right": 2, "both_wrong": 3}
    assert [(pair["index"], pair["transition"]) for pair in answer["pairs"]][:5] == [
        (0, "both_right"), (1, "both_right"), (2, "broken"), (3, "broken"), (4, "fixed"),
    ]  # fmt: skip
    pair = answer["pairs"][2]
    assert (pair["prompt"], pair["ground_truth"], pair["seen_in_training"]) == ("What is 2?", "2", False)
    assert (pair["baseline"]["prediction"], pair["candidate"]["prediction"]) == ("2", "wrong")
    assert (pair["baseline"]["exact_match"], pair["candidate"]["exact_match"]) == (True, False)
    assert answer["num_rows"] == answer["num_units"] == 10


def test_a_large_gain_is_better_with_the_exact_p_and_a_sentence(
    numbers: Any, make_run: MakeRun, compare: Compare
) -> None:
    dataset = numbers(40)
    base = make_run(dataset, answers_right_in(range(5), 40))
    other = make_run(dataset, answers_right_in(range(3, 30), 40))
    answer = compare(base, other)
    assert (answer["verdict"], answer["test"], answer["metric"]) == ("better", "mcnemar_exact", "exact_match")
    assert answer["p_value"] == answer["mcnemar_p_value"] == pytest.approx(2.744e-5, rel=1e-3)
    assert answer["rows_to_settle"] is None
    assert answer["difference"] == pytest.approx(22 / 40)
    assert answer["sentence"].startswith(
        "Better: base tiny-qwen3-vl is right in 27 of 40 rows, base tiny-qwen3-vl in 5"
    )
    match = answer["differences"]["exact_match"]
    assert match["low"] < match["difference"] < match["high"]
    assert (match["baseline"], match["candidate"]) == (5 / 40, 27 / 40)
    assert set(answer["differences"]) == {"exact_match", "token_precision", "token_recall", "token_f1"}


def test_exchanged_runs_give_the_mirrored_answer(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(40)
    base = make_run(dataset, answers_right_in(range(8), 40), metrics=["cer"])
    other = make_run(dataset, answers_right_in(range(3, 30), 40), metrics=["cer"])
    there, back = compare(base, other), compare(other, base)
    assert (there["verdict"], back["verdict"]) == ("better", "worse")
    assert there["p_value"] == back["p_value"]
    assert there["transitions"]["fixed"] == back["transitions"]["broken"]
    for name, one in there["differences"].items():
        mirrored = back["differences"][name]
        assert [one["difference"], one["low"], one["high"]] == pytest.approx(
            [-mirrored["difference"], -mirrored["high"], -mirrored["low"]]
        )


def test_the_same_question_has_the_same_answer(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(30)
    runs = make_run(dataset, answers_right_in(range(8), 30)), make_run(dataset, answers_right_in(range(4, 16), 30))
    assert compare(*runs, seed=5) == compare(*runs, seed=5)


def test_a_small_gain_cannot_be_told_and_says_how_many_rows_would_settle_it(
    numbers: Any, make_run: MakeRun, compare: Compare
) -> None:
    dataset = numbers(40)
    base = make_run(dataset, answers_right_in(range(10), 40))
    other = make_run(dataset, answers_right_in(range(2, 14), 40))
    answer = compare(base, other)
    assert (answer["transitions"]["fixed"], answer["transitions"]["broken"]) == (4, 2)
    assert answer["verdict"] == "cannot_tell"
    assert 200 < answer["rows_to_settle"] < 1000
    assert f"about {answer['rows_to_settle']} such rows" in answer["sentence"]
    assert 0 < answer["detectable_difference"] < 1


def test_equal_answers_cannot_be_told_and_no_number_of_rows_is_named(
    numbers: Any, make_run: MakeRun, compare: Compare
) -> None:
    dataset = numbers(12)
    runs = [make_run(dataset, answers_right_in(range(6), 12)) for _ in range(2)]
    answer = compare(*runs)
    assert (answer["verdict"], answer["p_value"], answer["difference"]) == ("cannot_tell", 1.0, 0.0)
    assert (answer["rows_to_settle"], answer["detectable_difference"]) == (None, None)
    assert answer["sentence"] == "Cannot tell: both are right in the same 6 of 12 rows."
    assert answer["differences"]["exact_match"]["low"] < 0 < answer["differences"]["exact_match"]["high"]


def test_as_many_fixed_as_broken_cannot_be_told(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(12)
    answer = compare(
        make_run(dataset, answers_right_in(range(4), 12)), make_run(dataset, answers_right_in(range(4, 8), 12))
    )
    assert (answer["verdict"], answer["p_value"], answer["rows_to_settle"]) == ("cannot_tell", 1.0, None)
    assert "4 fixed, as many broken" in answer["sentence"]
    assert answer["detectable_difference"] > 0


def test_one_row_and_five_rows_prove_nothing_and_six_can(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    for rows, verdict in ((1, "cannot_tell"), (5, "cannot_tell"), (6, "better")):
        dataset = numbers(rows, name=f"{rows}.csv")
        answer = compare(make_run(dataset, ["wrong"] * rows), make_run(dataset, answers_right_in(range(rows), rows)))
        assert answer["verdict"] == verdict
        assert "few_rows" in codes_of(answer)


def test_nothing_right_in_either_points_to_another_metric(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(5)
    answer = compare(make_run(dataset, ["no"] * 5), make_run(dataset, ["nothing"] * 5))
    assert "token_f1" in answer["sentence"]


def test_when_all_rows_are_skipped_nothing_is_compared_and_nothing_breaks(
    numbers: Any, make_run: MakeRun, compare: Compare
) -> None:
    dataset = numbers(3)
    answer = compare(make_run(dataset, [SKIP] * 3), make_run(dataset, [SKIP, "1", SKIP]))
    assert (answer["verdict"], answer["num_rows"], answer["p_value"]) == ("cannot_tell", 0, 1.0)
    assert answer["sentence"] == "Cannot tell: there is no row that both runs evaluated."
    assert answer["pairs"] == []
    assert set(answer["differences"].values()) == {None}
    assert answer["not_compared"] == {
        "only_in_baseline": 0, "only_in_candidate": 0, "skipped_in_baseline": 1, "skipped_in_candidate": 0,
        "skipped_in_both": 2, "without_label": 0,
    }  # fmt: skip


def test_rows_of_one_run_only_and_skipped_ones_are_counted_and_said(
    numbers: Any, make_run: MakeRun, compare: Compare
) -> None:
    dataset = numbers(10)
    base = make_run(dataset, {0: "0", 1: "1", 2: SKIP, 3: "3", 4: SKIP})
    other = make_run(dataset, {1: "1", 2: "2", 3: SKIP, 4: SKIP, 5: "5", 6: SKIP})
    answer = compare(base, other)
    assert [pair["index"] for pair in answer["pairs"]] == [1]
    assert answer["not_compared"] == {
        "only_in_baseline": 1, "only_in_candidate": 2, "skipped_in_baseline": 1, "skipped_in_candidate": 1,
        "skipped_in_both": 1, "without_label": 0,
    }  # fmt: skip
    (message,) = [w["message"] for w in answer["warnings"] if w["code"] == "rows_not_compared"]
    assert "3 skipped, 1 only in the baseline, 2 only in the candidate" in message


@pytest.mark.parametrize(
    ("transition", "rows"), [("fixed", [4, 5]), ("broken", [0]), ("both_right", [1]), ("both_wrong", [2, 3])]
)
def test_the_rows_are_listed_by_transition(
    numbers: Any, make_run: MakeRun, compare: Compare, transition: str, rows: list[int]
) -> None:
    dataset = numbers(6)
    runs = make_run(dataset, answers_right_in([0, 1], 6)), make_run(dataset, answers_right_in([1, 4, 5], 6))
    answer = compare(*runs, transition=transition)
    assert [pair["index"] for pair in answer["pairs"]] == rows
    assert (answer["total"], answer["transition"]) == (len(rows), transition)
    assert sum(answer["transitions"].values()) == 6


def test_the_rows_are_paged(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(7)
    runs = [make_run(dataset, answers_right_in(range(7), 7)) for _ in range(2)]
    answer = compare(*runs, page=3, page_size=3)
    assert [pair["index"] for pair in answer["pairs"]] == [6]
    assert (answer["page"], answer["page_size"], answer["total"], answer["total_pages"]) == (3, 3, 7, 3)
    assert compare(*runs, page=9)["pairs"] == []


# Which rows are judged


def test_an_adapter_is_judged_on_the_rows_that_training_did_not_see(
    numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    dataset = numbers(40)
    adapter = make_adapter(dataset, trained=range(20), heldout=range(20, 40))
    base = make_run(dataset, answers_right_in([], 40))
    learned = make_run(dataset, answers_right_in([*range(20), 20, 21], 40), adapter=adapter)
    answer = compare(base, learned)
    assert (answer["rows"], answer["num_rows"], answer["verdict"]) == ("unseen", 20, "cannot_tell")
    assert answer["parts"]["seen"] == {"fixed": 20, "broken": 0, "both_right": 0, "both_wrong": 0}
    assert (
        answer["parts"]["unseen"]
        == answer["transitions"]
        == {"fixed": 2, "broken": 0, "both_right": 0, "both_wrong": 18}
    )
    assert answer["parts"]["all"]["fixed"] == 22
    assert "of 20 rows that training did not see" in answer["sentence"]
    assert "seen_rows_left_out" in codes_of(answer)
    assert {pair["index"] for pair in answer["pairs"]} == set(range(20, 40))


@pytest.mark.parametrize("rows", ["all", "seen"])
def test_a_gain_on_rows_that_training_saw_is_never_better(
    numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare, rows: str
) -> None:
    dataset = numbers(40)
    adapter = make_adapter(dataset, trained=range(39), heldout=[39])
    base = make_run(dataset, answers_right_in([], 40))
    learned = make_run(dataset, answers_right_in(range(40), 40), adapter=adapter)
    answer = compare(base, learned, rows=rows)
    assert (answer["verdict"], answer["rows"]) == ("cannot_tell", rows)
    assert answer["p_value"] < 0.001
    assert "a gain on such rows is no proof" in answer["sentence"]
    assert "seen_rows" in codes_of(answer)
    assert answer["rows_to_settle"] is None


def test_when_training_saw_every_row_there_is_no_verdict(
    numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    dataset = numbers(10)
    adapter = make_adapter(dataset, trained=range(10), heldout=[])
    answer = compare(
        make_run(dataset, ["wrong"] * 10), make_run(dataset, answers_right_in(range(10), 10), adapter=adapter)
    )
    assert (answer["verdict"], answer["rows"]) == ("cannot_tell", "all")
    assert {"seen_rows", "no_unseen_rows"} <= codes_of(answer)
    assert answer["parts"]["unseen"] is None


def test_a_row_that_either_adapter_saw_is_seen(
    numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    dataset = numbers(9)
    one = make_adapter(dataset, name="one", trained=[0, 1, 2], heldout=range(3, 9))
    two = make_adapter(dataset, name="two", trained=[2, 3, 4], heldout=[0, 1, 5, 6, 7, 8])
    answer = compare(make_run(dataset, ["x"] * 9, adapter=one), make_run(dataset, ["x"] * 9, adapter=two))
    assert [pair["index"] for pair in answer["pairs"]] == [5, 6, 7, 8]
    assert sum(answer["parts"]["seen"].values()) == 5


def test_an_adapter_whose_training_rows_nobody_knows_is_compared_with_a_warning(
    numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    dataset = numbers(8)
    imported = make_adapter(dataset, trained=range(5), heldout=[])
    Adapter.objects.update(run=None)
    imported.refresh_from_db()
    answer = compare(make_run(dataset, ["x"] * 8), make_run(dataset, answers_right_in(range(8), 8), adapter=imported))
    assert (answer["rows"], answer["pairs"][0]["seen_in_training"]) == ("all", None)
    assert "split_unknown" in codes_of(answer)


@pytest.mark.parametrize(("rows", "code"), [("seen", "no_split"), ("unseen", "no_split")])
def test_parts_of_an_unknown_split_are_refused(
    api: APIClient, numbers: Any, make_run: MakeRun, rows: str, code: str
) -> None:
    dataset = numbers(3)
    base, other = make_run(dataset, ["x"] * 3), make_run(dataset, ["x"] * 3)
    status, problem = refused(api, baseline_run_id=base.pk, candidate_run_id=other.pk, rows=rows)
    assert (status, problem["code"]) == (400, code)
    assert "heldout" in problem["hint"]


def test_unseen_rows_that_do_not_exist_are_refused(
    api: APIClient, numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter]
) -> None:
    dataset = numbers(3)
    learned = make_run(dataset, ["x"] * 3, adapter=make_adapter(dataset, trained=range(3), heldout=[]))
    base = make_run(dataset, ["x"] * 3)
    status, problem = refused(api, baseline_run_id=base.pk, candidate_run_id=learned.pk, rows="unseen")
    assert (status, problem["code"]) == (400, "no_unseen_rows")


# What cannot be compared


def test_a_run_is_not_compared_with_itself(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    run = make_run(numbers(3), ["x"] * 3)
    assert refused(api, baseline_run_id=run.pk, candidate_run_id=run.pk)[1]["code"] == "same_run"


def test_runs_over_different_datasets_are_not_compared(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    one, other = make_run(numbers(3), ["x"] * 3), make_run(numbers(4, name="other.csv"), ["x"] * 4)
    status, problem = refused(api, baseline_run_id=one.pk, candidate_run_id=other.pk)
    assert (status, problem["code"]) == (409, "datasets_differ")
    assert "other.csv" in problem["detail"]


def test_runs_judged_by_different_columns_are_not_compared(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(3)
    one = make_run(dataset, ["x"] * 3)
    mapping_set(dataset=dataset, prompt_column="prompt", response_column="note", mandatory_columns=[])
    other = make_run(dataset, ["x"] * 3)
    status, problem = refused(api, baseline_run_id=one.pk, candidate_run_id=other.pk)
    assert (status, problem["code"]) == (409, "ground_truths_differ")
    assert "'answer'" in problem["detail"]
    assert "'note'" in problem["detail"]


def test_runs_that_normalise_differently_are_not_compared(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(3)
    one, other = make_run(dataset, ["x"] * 3), make_run(dataset, ["x"] * 3, normalization={"casefold": True})
    status, problem = refused(api, baseline_run_id=one.pk, candidate_run_id=other.pk)
    assert (status, problem["code"]) == (409, "scoring_differs")


@pytest.mark.parametrize("status", ["queued", "evaluating", "stopping", "error"])
@pytest.mark.parametrize("side", [0, 1])
def test_an_unfinished_run_is_not_compared(
    api: APIClient, numbers: Any, make_run: MakeRun, status: str, side: int
) -> None:
    dataset = numbers(3)
    runs = [make_run(dataset, ["x"] * 3) for _ in range(2)]
    EvaluationRun.objects.filter(pk=runs[side].pk).update(status=status)
    code, problem = refused(api, baseline_run_id=runs[0].pk, candidate_run_id=runs[1].pk)
    assert (code, problem["code"]) == (409, "run_not_finished")
    assert f"run {runs[side].pk} is {status}" in problem["detail"]


def test_an_unknown_run_is_not_found(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    run = make_run(numbers(3), ["x"] * 3)
    assert refused(api, baseline_run_id=run.pk, candidate_run_id=999)[1]["code"] == "run_not_found"
    assert refused(api, baseline_run_id=2**62, candidate_run_id=run.pk)[0] == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "baseline_run_id"),
        ({"baseline_run_id": 1}, "candidate_run_id"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "candidate_run_ids": [2]}, "candidate_run_id"),
        ({"baseline_run_id": 1, "candidate_run_ids": []}, "candidate_run_ids"),
        ({"baseline_run_id": 1, "candidate_run_ids": list(range(1, 23))}, "candidate_run_ids"),
        ({"baseline_run_id": "1", "candidate_run_id": 2}, "baseline_run_id"),
        ({"baseline_run_id": True, "candidate_run_id": 2}, "baseline_run_id"),
        ({"baseline_run_id": 0, "candidate_run_id": 2}, "baseline_run_id"),
        ({"baseline_run_id": 2**70, "candidate_run_id": 2}, "baseline_run_id"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "rows": "heldout"}, "rows"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "confidence_level": 95}, "confidence_level"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "confidence_level": "0.9"}, "confidence_level"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "num_resamples": 10}, "num_resamples"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "num_resamples": 10**9}, "num_resamples"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "seed": -1}, "seed"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "transition": "better"}, "transition"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "page_size": 501}, "page_size"),
        ({"baseline_run_id": 1, "candidate_run_id": 2, "basline": 2}, "basline"),
    ],
)
def test_a_wrong_body_is_refused_by_field(api: APIClient, body: dict[str, Any], field: str) -> None:
    status, problem = refused(api, **body)
    assert (status, problem["errors"][0]["field"].split(".")[0]) == (400, field)


def test_not_a_number_is_refused(api: APIClient) -> None:
    body = '{"baseline_run_id": 1, "candidate_run_id": 2, "confidence_level": NaN}'
    response = api.post("/api/evaluation/compare", body, content_type="application/json")
    assert response.status_code == 400


def test_a_metric_that_the_runs_do_not_share_is_refused_with_the_nearest(
    api: APIClient, numbers: Any, make_run: MakeRun
) -> None:
    dataset = numbers(3)
    one, other = make_run(dataset, ["x"] * 3, metrics=["cer"]), make_run(dataset, ["x"] * 3)
    for name in ("cer", "token_f2"):
        status, problem = refused(api, baseline_run_id=one.pk, candidate_run_id=other.pk, metric=name)
        assert (status, problem["code"]) == (400, "unknown_metric")
    assert "token_f1" in problem["hint"]


# Metrics, settings, groups, several candidates


def test_a_verdict_by_an_error_rate_is_better_when_it_falls(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(60)
    base = make_run(dataset, ["much too long"] * 60, metrics=["cer"])
    other = make_run(dataset, ["short"] * 60, metrics=["cer"])
    answer = compare(base, other, metric="cer")
    assert (answer["verdict"], answer["test"], answer["higher_is_better"]) == ("better", "sign_flip", False)
    assert answer["difference"] == pytest.approx(answer["differences"]["cer"]["difference"])
    assert answer["difference"] < 0
    assert compare(other, base, metric="cer")["verdict"] == "worse"
    assert "cer is" in answer["sentence"]


def test_the_error_rate_of_a_comparison_is_that_of_the_runs(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    """All edits over all characters, not the mean of the rows' rates."""
    dataset = numbers(12)
    base = make_run(dataset, [f"{n}" if n < 10 else "" for n in range(12)], metrics=["cer"])
    other = make_run(dataset, [f"{n}" for n in range(12)], metrics=["cer"])
    cer = compare(base, other)["differences"]["cer"]
    assert (cer["baseline"], cer["candidate"]) == (pytest.approx(4 / 14), 0.0)


def test_a_metric_with_other_parameters_is_left_out_and_said(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(4)
    one = make_run(dataset, ["1"] * 4, metrics=[{"name": "numeric", "tolerance": 0.5}])
    other = make_run(dataset, ["1"] * 4, metrics=[{"name": "numeric", "tolerance": 0.1}])
    answer = compare(one, other)
    assert "numeric" not in answer["differences"]
    assert "metric_parameters_differ" in codes_of(answer)


def test_classification_is_judged_by_label_and_gives_the_classes_figures(
    make_dataset: Callable[..., Dataset], make_run: MakeRun, compare: Compare
) -> None:
    dataset = make_dataset([(f"Is {n} even?", "yes" if n % 2 == 0 else "no", "") for n in range(20)])
    base = make_run(dataset, ["Yes."] * 20, classification=True)
    other = make_run(dataset, ["Yes, it is" if n % 2 == 0 else "FALSE" for n in range(20)], classification=True)
    answer = compare(base, other)
    assert (answer["metric"], answer["verdict"]) == ("accuracy", "better")
    assert answer["transitions"] == {"fixed": 10, "broken": 0, "both_right": 10, "both_wrong": 0}
    figures = {name: (one["baseline"], one["candidate"]) for name, one in answer["differences"].items()}
    assert figures["accuracy"] == (0.5, 1.0)
    assert figures["precision"] == (0.5, 1.0)
    assert figures["recall"] == (1.0, 1.0)
    assert figures["f1"] == (pytest.approx(2 / 3), 1.0)
    assert answer["pairs"][0]["candidate"]["label"] == "yes"


def test_the_classes_figures_are_those_that_the_runs_report(
    make_dataset: Callable[..., Dataset], make_run: MakeRun, compare: Compare
) -> None:
    labels = ["cat", "dog", "fox"]
    dataset = make_dataset([(f"Which animal {n}?", labels[n % 3], "") for n in range(30)])
    base = make_run(dataset, [labels[n % 2] for n in range(30)], classification=True)
    other = make_run(dataset, ["fox" if n % 4 else labels[n % 3] for n in range(30)], classification=True)
    answer = compare(base, other)
    for side, run in (("baseline", base), ("candidate", other)):
        for name in ("accuracy", "precision", "recall", "f1"):
            expected = run.metrics["classification"][name]
            assert answer["differences"][name][side] == pytest.approx(expected), (side, name)


def test_rows_without_a_label_are_counted_and_left_out(
    make_dataset: Callable[..., Dataset], make_run: MakeRun, compare: Compare
) -> None:
    dataset = make_dataset([("a?", "yes", ""), ("b?", " ", ""), ("c?", "no", "")])
    answer = compare(*(make_run(dataset, ["yes"] * 3, classification=True) for _ in range(2)))
    assert (answer["num_rows"], answer["not_compared"]["without_label"]) == (2, 1)


def test_a_classification_run_beside_another_is_judged_by_exact_match(
    make_dataset: Callable[..., Dataset], make_run: MakeRun, compare: Compare
) -> None:
    dataset = make_dataset([(f"{n}?", "yes", "") for n in range(4)])
    answer = compare(make_run(dataset, ["Yes"] * 4, classification=True), make_run(dataset, ["yes"] * 4))
    assert (answer["metric"], answer["transitions"]["fixed"]) == ("exact_match", 4)
    assert "modes_differ" in codes_of(answer)


def test_what_else_differs_between_the_runs_is_said(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(3)
    base = make_run(dataset, ["x"] * 3, model_settings={"max_pixels": 4096}, reused=True)
    params = {"max_new_tokens": 8, "temperature": 0.7, "top_p": 0.9, "min_p": 0.0, "do_sample": True, "seed": 1}
    other = make_run(
        dataset,
        ["x"] * 3,
        model_settings={"max_pixels": 9216},
        generation_params=params,
        model_name="other",
        device="cuda",
    )
    answer = compare(base, other)
    assert codes_of(answer) >= {
        "models_differ", "devices_differ", "model_settings_differ", "generation_params_differ", "answers_sampled",
        "answers_reused", "few_rows",
    }  # fmt: skip
    (message,) = [w["message"] for w in answer["warnings"] if w["code"] == "model_settings_differ"]
    assert "max_pixels 4096 against 9216" in message


def test_sampling_settings_of_greedy_runs_are_no_difference(numbers: Any, make_run: MakeRun, compare: Compare) -> None:
    dataset = numbers(3)
    one = make_run(dataset, ["x"] * 3)
    other = make_run(dataset, ["x"] * 3, generation_params={**one.generation_params, "temperature": 0.9, "top_p": 0.5})
    assert codes_of(compare(one, other)) == {"few_rows"}


def test_rows_that_share_an_image_count_as_one_witness(
    make_dataset: Callable[..., Dataset], make_run: MakeRun, compare: Compare
) -> None:
    rows = [(f"Question {n}?", f"{n}", f"https://example.com/{n // 10}.png") for n in range(80)]
    dataset = make_dataset(rows, image_url_columns=["note"])
    base = make_run(dataset, answers_right_in([], 80))
    other = make_run(dataset, answers_right_in(range(20), 80))
    answer = compare(base, other)
    assert (answer["num_rows"], answer["num_units"], answer["test"]) == (80, 8, "sign_flip")
    assert answer["mcnemar_p_value"] < 0.001
    assert (answer["p_value"], answer["verdict"]) == (0.5, "cannot_tell")
    assert "rows_share_images" in codes_of(answer)
    assert answer["rows_to_settle"] > 80
    assert "8 groups" in answer["sentence"]


def test_unseen_rows_that_show_an_image_of_training_are_named(
    make_dataset: Callable[..., Dataset], make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    rows = [(f"Question {n}?", f"{n}", f"https://example.com/{n % 5}.png") for n in range(10)]
    dataset = make_dataset(rows, image_url_columns=["note"])
    adapter = make_adapter(dataset, trained=[0, 1], heldout=range(2, 10))
    heldout = {n: "x" for n in range(2, 10)}
    answer = compare(make_run(dataset, heldout), make_run(dataset, heldout, adapter=adapter))
    (message,) = [w["message"] for w in answer["warnings"] if w["code"] == "unseen_rows_resemble_seen"]
    assert message.startswith("2 of the unseen rows")


def test_several_candidates_are_adjusted_together(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(40)
    base = make_run(dataset, answers_right_in([], 40))
    close = make_run(dataset, answers_right_in(range(6), 40))
    closer = make_run(dataset, answers_right_in(range(6, 12), 40))
    far = make_run(dataset, answers_right_in(range(30), 40))
    body = {"baseline_run_id": base.pk, "candidate_run_ids": [close.pk, closer.pk, far.pk]}
    answer = api.post("/api/evaluation/compare", body, format="json").json()
    assert answer["correction"] == "holm"
    assert [one["verdict"] for one in answer["comparisons"]] == ["cannot_tell", "cannot_tell", "better"]
    assert [one["candidate"]["run_id"] for one in answer["comparisons"]] == [close.pk, closer.pk, far.pk]
    assert answer["comparisons"][0]["p_value"] == 0.03125
    assert answer["comparisons"][0]["p_value_adjusted"] == 0.0625
    assert "counted for all models compared" in answer["comparisons"][0]["sentence"]
    assert "pairs" not in answer["comparisons"][0]
    alone = api.post("/api/evaluation/compare", {**body, "candidate_run_ids": [close.pk]}, format="json").json()
    assert (alone["comparisons"][0]["verdict"], alone["comparisons"][0]["p_value_adjusted"]) == ("better", None)


def test_a_candidate_named_twice_is_refused(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(3)
    base, other = (make_run(dataset, ["x"] * 3) for _ in range(2))
    body = {"baseline_run_id": base.pk, "candidate_run_ids": [other.pk, other.pk]}
    assert refused(api, **body)[1]["code"] == "same_run"


# What training saw in another dataset, or under another name


def test_rows_that_training_saw_in_an_earlier_upload_are_recognised_by_content(
    make_dataset: Callable[..., Dataset], make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    """The user trains on eight rows, appends twenty, uploads again: the eight are no proof."""
    rows = [(f"What is {n}?", f"{n}", f"https://example.com/{n}.png") for n in range(28)]
    earlier = make_dataset(rows[:8], image_url_columns=["note"])
    adapter = make_adapter(earlier, trained=range(8), heldout=[])
    dataset = make_dataset(rows, name="longer.csv", image_url_columns=["note"])
    base = make_run(dataset, ["x"] * 28)
    learned = make_run(dataset, answers_right_in(range(10), 28), adapter=adapter)
    answer = compare(base, learned)
    assert (answer["rows"], answer["num_rows"], answer["verdict"]) == ("unseen", 20, "cannot_tell")
    assert answer["parts"]["seen"]["fixed"] == 8
    assert "split_by_content" in codes_of(answer)
    assert compare(base, learned, rows="all")["verdict"] == "cannot_tell"


def test_text_rows_are_recognised_by_their_prompt(
    numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    earlier, dataset = numbers(4), numbers(10, name="longer.csv")
    adapter = make_adapter(earlier, trained=[0, 1], heldout=[2, 3])
    answer = compare(make_run(dataset, ["x"] * 10), make_run(dataset, ["x"] * 10, adapter=adapter))
    assert [pair["index"] for pair in answer["pairs"]] == list(range(2, 10))


def test_a_reference_picture_of_all_rows_makes_none_of_them_seen(
    make_dataset: Callable[..., Dataset], make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    rows = [(f"{n}?", f"{n}", f"https://example.com/reference.png|https://example.com/{n}.png") for n in range(12)]
    options = {"image_url_columns": ["note"], "image_separator": "|"}
    earlier = make_dataset(rows[:4], **options)
    dataset = make_dataset(rows, name="longer.csv", **options)
    adapter = make_adapter(earlier, trained=range(4), heldout=[])
    answer = compare(make_run(dataset, ["x"] * 12), make_run(dataset, ["x"] * 12, adapter=adapter))
    assert (answer["num_rows"], answer["num_units"]) == (8, 8)


def test_a_merged_model_saw_what_its_adapter_saw(
    numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    dataset = numbers(10)
    adapter = make_adapter(dataset, trained=range(6), heldout=range(6, 10))
    AdapterMerge.objects.create(
        adapter=adapter,
        adapter_name=adapter.name,
        base_model_name="tiny-qwen3-vl",
        model_name="mine",
        status="completed",
    )
    merged = make_run(dataset, answers_right_in(range(10), 10), model_name="mine")
    answer = compare(make_run(dataset, ["x"] * 10), merged)
    assert (answer["rows"], answer["num_rows"]) == ("unseen", 4)
    AdapterMerge.objects.update(adapter=None)
    assert "split_unknown" in codes_of(compare(make_run(dataset, ["x"] * 10), merged))


def test_an_adapter_on_a_merged_model_saw_the_rows_of_both_trainings(
    numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    dataset = numbers(10)
    first = make_adapter(dataset, name="first", trained=[0, 1, 2], heldout=range(3, 10))
    second = make_adapter(dataset, name="second", trained=[2, 3], heldout=range(4, 10), base_model_name="mine")
    facts = {"adapter_name": "first", "base_model_name": "tiny-qwen3-vl", "model_name": "mine", "status": "completed"}
    AdapterMerge.objects.create(adapter=first, **facts)
    learned = make_run(dataset, ["x"] * 10, adapter=second, model_name="mine")
    answer = compare(make_run(dataset, ["x"] * 10), learned)
    assert [pair["index"] for pair in answer["pairs"]] == list(range(4, 10))


def test_when_the_table_of_training_is_gone_the_split_is_unknown(
    numbers: Any, make_run: MakeRun, make_adapter: Callable[..., Adapter], compare: Compare
) -> None:
    earlier, dataset = numbers(4), numbers(10, name="longer.csv")
    adapter = make_adapter(earlier, trained=[0, 1], heldout=[2, 3])
    earlier.table_path.unlink()
    answer = compare(make_run(dataset, ["x"] * 10), make_run(dataset, ["x"] * 10, adapter=adapter))
    assert answer["rows"] == "all"
    assert "split_unknown" in codes_of(answer)
