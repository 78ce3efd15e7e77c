"""What a request may ask to be scored, what is refused with the nearest name, and what both texts go through before."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine.configs import ConfigError
from ftproject.engine.metrics import (
    ALWAYS_SCORED,
    METRICS,
    Normalization,
    RunTotals,
    SampleScore,
    ScoringOptions,
    exact_match,
    metric_schema,
    normalization_schema,
    parse_scoring_options,
)
from ftproject.engine.metrics.json_fields import MOST_FIELDS
from ftproject.engine.metrics.normalization import LONGEST_PATTERN
from tests.engine.metrics.oracles import texts

EVERY_METRIC = [
    "cer",
    "wer",
    {"name": "chrf", "word_order": 2},
    "rouge_l",
    {"name": "anls", "threshold": 0.4},
    {"name": "numeric", "tolerance": 0.01, "relative_tolerance": 0.05, "decimal_separator": ","},
    {"name": "json_fields", "fields": ["shop.name", "items[0]"]},
]
NOT_EVALUATED = SampleScore(None, None, None, None)


def refusal(metrics: Any = None, normalization: Any = None) -> tuple[str, str, str]:
    """Field, code and message of the one problem."""
    with pytest.raises(ConfigError) as caught:
        parse_scoring_options(metrics, normalization)
    [problem] = caught.value.problems
    return problem.field, problem.code, problem.message


def test_every_metric_can_be_named_and_is_scored() -> None:
    options = parse_scoring_options(EVERY_METRIC)
    assert [metric.name for metric in options.metrics] == list(METRICS)
    scores = options.score('{"shop": {"name": "A"}}', '{"shop": {"name": "A"}}')
    assert scores.values == {
        **{"cer": 0.0, "wer": 0.0, "chrf": 1.0, "rouge_l": 1.0, "anls": 1.0},
        **{"numeric": None, "json_fields": 1.0},
    }


def test_options_survive_the_database() -> None:
    options = parse_scoring_options(EVERY_METRIC, {"casefold": True, "extract": r"Answer: (\w+)"}, confidence=True)
    stored = json.loads(json.dumps(options.to_dict()))
    assert ScoringOptions.from_dict(stored) == options


def test_a_run_from_before_there_were_options_has_none() -> None:
    assert ScoringOptions.from_dict({}) == ScoringOptions()
    assert parse_scoring_options([], {}) == parse_scoring_options(None, None) == ScoringOptions()


def test_what_is_always_scored_may_be_named_and_changes_nothing() -> None:
    assert parse_scoring_options([*ALWAYS_SCORED, {"name": "token_f1"}]) == ScoringOptions()
    assert refusal([{"name": "exact_match", "casefold": True}])[:2] == ("metrics.0", "invalid_metric")


@pytest.mark.parametrize(("name", "nearest"), [("rougeL", "rouge_l"), ("ANLS", None), ("numerc", "numeric")])
def test_an_unknown_metric_is_named_with_the_nearest(name: str, nearest: str | None) -> None:
    field, code, message = refusal(["cer", name])
    assert (field, code) == ("metrics.1", "unknown_metric")
    assert name in message
    assert nearest is None or f"did you mean {nearest!r}" in message


@pytest.mark.parametrize(
    ("metrics", "field", "code"),
    [
        ("cer", "metrics", "invalid_type"),
        ({"name": "cer"}, "metrics", "invalid_type"),
        ([1], "metrics.0", "invalid_type"),
        ([None], "metrics.0", "invalid_type"),
        ([{}], "metrics.0", "invalid_type"),
        ([{"name": ["cer"]}], "metrics.0", "invalid_type"),
        ([["cer"]], "metrics.0", "invalid_type"),
        (["cer"] * 12, "metrics", "too_many"),
        (["cer", {"name": "cer"}], "metrics.1", "duplicate_metric"),
        ([{"name": "cer", "tolerance": 1}], "metrics.0.tolerance", "unknown_field"),
        ([{"name": "numeric", "tolerence": 1}], "metrics.0.tolerence", "unknown_field"),
        ([{"name": "numeric", "tolerance": -1}], "metrics.0.tolerance", "out_of_range"),
        ([{"name": "numeric", "tolerance": "1"}], "metrics.0.tolerance", "invalid_type"),
        ([{"name": "numeric", "tolerance": True}], "metrics.0.tolerance", "invalid_type"),
        ([{"name": "numeric", "tolerance": float("nan")}], "metrics.0.tolerance", "not_finite"),
        ([{"name": "numeric", "tolerance": 10**400}], "metrics.0.tolerance", "not_finite"),
        ([{"name": "numeric", "relative_tolerance": 1.5}], "metrics.0.relative_tolerance", "out_of_range"),
        ([{"name": "numeric", "decimal_separator": ";"}], "metrics.0.decimal_separator", "invalid_choice"),
        ([{"name": "anls", "threshold": 0}], "metrics.0.threshold", "out_of_range"),
        ([{"name": "chrf", "char_order": 0}], "metrics.0.char_order", "out_of_range"),
        ([{"name": "chrf", "word_order": 1.5}], "metrics.0.word_order", "invalid_type"),
        ([{"name": "chrf", "beta": None}], "metrics.0.beta", "invalid_type"),
        ([{"name": "json_fields", "fields": "total"}], "metrics.0.fields", "invalid_fields"),
        ([{"name": "json_fields", "fields": []}], "metrics.0.fields", "invalid_fields"),
        ([{"name": "json_fields", "fields": [1]}], "metrics.0.fields", "invalid_fields"),
        ([{"name": "json_fields", "fields": ["a", None]}], "metrics.0.fields", "invalid_fields"),
        ([{"name": "json_fields", "fields": [""]}], "metrics.0.fields", "invalid_fields"),
        ([{"name": "json_fields", "fields": ["a\0"]}], "metrics.0.fields", "invalid_fields"),
        ([{"name": "json_fields", "fields": ["\ud800"]}], "metrics.0.fields", "invalid_fields"),
        ([{"name": "json_fields", "fields": ["a"] * (MOST_FIELDS + 1)}], "metrics.0.fields", "invalid_fields"),
        ([{"name": "json_fields", "field": ["a"]}], "metrics.0.field", "unknown_field"),
    ],
)
def test_a_metric_that_cannot_be_scored_is_refused_by_its_field(metrics: Any, field: str, code: str) -> None:
    assert refusal(metrics)[:2] == (field, code)


@pytest.mark.parametrize(
    ("normalization", "field", "code"),
    [
        ([], "normalization", "invalid_type"),
        ({"case_fold": True}, "normalization.case_fold", "unknown_field"),
        ({"casefold": 1}, "normalization.casefold", "invalid_type"),
        ({"strip_punctuation": None}, "normalization.strip_punctuation", "invalid_type"),
        ({"extract": 5}, "normalization.extract", "invalid_type"),
        ({"extract": ""}, "normalization.extract", "invalid_pattern"),
        ({"extract": "("}, "normalization.extract", "invalid_pattern"),
        ({"extract": "a" * (LONGEST_PATTERN + 1)}, "normalization.extract", "invalid_pattern"),
        ({"extract": "(?<=Answer: )x"}, "normalization.extract", "invalid_pattern"),
        ({"extract": r"(a)\1"}, "normalization.extract", "invalid_pattern"),
        ({"extract": "(a{1,1000}){1,1000}"}, "normalization.extract", "invalid_pattern"),
        ({"extract": r"((\pL?){30}){30}"}, "normalization.extract", "invalid_pattern"),
        ({"extract": "a\0b"}, "normalization.extract", "invalid_pattern"),
        ({"extract": "\ud800"}, "normalization.extract", "invalid_pattern"),
    ],
)
def test_a_normalisation_that_cannot_be_done_is_refused_by_its_field(normalization: Any, field: str, code: str) -> None:
    assert refusal(None, normalization)[:2] == (field, code)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_scoring_options(["bleu", {"name": "anls", "threshold": 2}], {"extract": "("})
    assert [item.code for item in caught.value.problems] == ["invalid_pattern", "unknown_metric", "out_of_range"]
    assert "json_fields" in str(caught.value.hint)


@given(st.text(max_size=30))
def test_no_pattern_breaks_the_parser(pattern: str) -> None:
    try:
        options = parse_scoring_options(None, {"extract": pattern})
    except ConfigError:
        return
    assert isinstance(options.score("some answer 12", "12").overlap.exact_match, bool)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a*)*(a*)*(a*)*b", "((a?){9}){9}b", "(.*)(.*)(.*)(.*)x"])
def test_a_hostile_pattern_hangs_nothing(pattern: str) -> None:
    options = parse_scoring_options(None, {"extract": pattern})
    started = time.perf_counter()
    options.score("a" * 40_000 + "!", "a")
    assert time.perf_counter() - started < 5


def test_both_texts_are_normalised_in_the_same_way_for_every_score() -> None:
    options = parse_scoring_options(
        ["cer", "wer", "chrf", "rouge_l", "anls", "numeric"],
        {"casefold": True, "strip_punctuation": True, "extract": "ANSWER: (.+)"},
    )
    scores = options.score("I think.\nANSWER: Twelve (12).", "ANSWER: twelve 12")
    assert scores.overlap == SampleScore(True, 1.0, 1.0, 1.0)
    assert scores.values == {"cer": 0.0, "wer": 0.0, "chrf": 1.0, "rouge_l": 1.0, "anls": 1.0, "numeric": 1.0}
    assert scores.details["extract"] == {"prediction": True, "ground_truth": True}


@given(texts, texts)
def test_without_options_exact_match_is_the_contracts(prediction: str, truth: str) -> None:
    assert ScoringOptions().score(prediction, truth).overlap.exact_match is exact_match(prediction, truth)


@given(texts)
def test_normalising_twice_changes_nothing(text: str) -> None:
    for options in (Normalization(), Normalization(True, True), Normalization(casefold=True)):
        once = options.comparable(text)
        assert options.comparable(once) == once


@pytest.mark.parametrize(
    ("options", "text", "comparable"),
    [
        (Normalization(), " A  b. ", "A b."),
        (Normalization(casefold=True), "STRASSE straße", "strasse strasse"),
        (Normalization(strip_punctuation=True), "«It's»  -- 3.5, no?", "It's 3.5 no"),
        (Normalization(strip_punctuation=True), "...", ""),
        (Normalization(casefold=True, strip_punctuation=True), "", ""),
    ],
)
def test_case_and_punctuation_go_only_when_asked(options: Normalization, text: str, comparable: str) -> None:
    assert options.comparable(text) == comparable


@pytest.mark.parametrize(
    ("pattern", "text", "answer", "found"),
    [
        ("x", "no", "no", False),
        (r"\d+", "in 3 or 4", "3", True),
        (r"(?s).*\b(\d+)", "in 3 or 4", "4", True),
        ("(a)|(b)", "b", "b", True),
        ("(x)?b", "ab", "b", True),
        ("<answer>(.*?)</answer>", "<answer></answer>", "", True),
        ("(?i)é", "É", "É", True),
    ],
)
def test_the_first_group_or_the_whole_match_is_the_answer(pattern: str, text: str, answer: str, found: bool) -> None:
    assert Normalization(extract=pattern).answer_in(text) == (answer, found)


def test_numbers_and_json_keep_their_punctuation_under_every_option() -> None:
    options = parse_scoring_options(["numeric", "json_fields"], {"casefold": True, "strip_punctuation": True})
    assert options.score("-5", "5").values["numeric"] == 0.0
    assert options.score("-5", "5").overlap.exact_match is True
    assert options.score('{"Key": "RED!"}', '{"Key": "red"}').values["json_fields"] == 1.0
    assert options.score('{"key": "red"}', '{"Key": "red"}').values["json_fields"] == 0.0


def test_totals_leave_skipped_rows_out_of_every_figure() -> None:
    options = parse_scoring_options(["cer", "numeric"], {"extract": r"\d+"})
    totals = RunTotals(options)
    for prediction, truth in [("is 12", "12"), ("none", "7"), ("3", "none")]:
        scores = options.score(prediction, truth)
        totals.add(scores.overlap, scores.values, scores.details)
    totals.add(NOT_EVALUATED, {}, {})
    figures = totals.figures()
    assert (figures["num_samples"], figures["num_skipped"]) == (4, 1)
    assert figures["exact_match_accuracy"] == pytest.approx(1 / 3)
    assert figures["numeric"] == pytest.approx(1 / 2)
    assert figures["details"]["extract"] == {"predictions_without_match": 1, "ground_truths_without_match": 1}


def test_a_run_of_skipped_rows_has_nulls_in_every_figure() -> None:
    totals = RunTotals(parse_scoring_options(EVERY_METRIC))
    totals.add(NOT_EVALUATED)
    figures = totals.figures()
    assert all(figures[name] is None for name in (*METRICS, "exact_match_accuracy", "token_f1"))
    json.dumps(figures, allow_nan=False)


@given(st.lists(st.tuples(texts, texts), max_size=6))
def test_no_figure_is_ever_nan_and_the_parts_add_up(pairs: list[tuple[str, str]]) -> None:
    options = parse_scoring_options([entry for entry in EVERY_METRIC if entry != "wer"])
    totals = RunTotals(options)
    rows = [options.score(prediction, truth) for prediction, truth in pairs]
    for scores in rows:
        totals.add(scores.overlap, scores.values, scores.details)
    figures = totals.figures()
    json.dumps(figures, allow_nan=False)
    for metric in options.metrics:
        parts = [metric.parts(scores.values[metric.name], scores.details.get(metric.name, {})) for scores in rows]
        weight = sum(part[1] for part in parts)
        expected = sum(part[0] for part in parts) / weight if weight else None
        assert figures[metric.name] == (None if expected is None else pytest.approx(expected))


def test_the_schema_accepts_what_the_parser_accepts() -> None:
    import jsonschema  # type: ignore[import-untyped]

    for entry in [*EVERY_METRIC, *ALWAYS_SCORED]:
        jsonschema.validate(entry, metric_schema())
    for wrong in ("bleu", {"name": "cer", "x": 1}, {"tolerance": 1}, {"name": "numeric", "tolerance": -1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, metric_schema())
    jsonschema.validate({"casefold": True, "extract": None}, normalization_schema())
