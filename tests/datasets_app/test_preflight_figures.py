"""Duplicates, conflicts, label balance, lengths and remedies: figures of the report against slow, plain counting."""

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_app.preflight.estimates import memory_report, planned_steps, time_report
from datasets_app.preflight.lengths import LengthTally
from datasets_app.preflight.port import MeasuredSpeed, PlannedTraining
from datasets_app.preflight.repeats import RepeatFinder, text_hash
from datasets_app.preflight.rows import JudgedRow
from datasets_app.preflight.tally import OTHER_REASONS, REASONS_KEPT, PreflightTally
from ftproject.engine.configs import TINY_MODEL_PATH, EffectiveConfig, TrainingConfig
from ftproject.engine.conversations import Conversation
from ftproject.engine.processors import PixelRule
from ftproject.engine.token_counts import RowTokens, VisionRule

texts = st.sampled_from(["a", "b", " a", "A", "é", "e\u0301", ""])
tables = st.lists(st.tuples(texts, st.lists(st.sampled_from(["x", "y"]), max_size=2), texts), max_size=30)
VISION = VisionRule(16, 2, PixelRule(1024, 1_000_000))


def talk(index: int, prompt: str = "q", answer: str = "a", images: tuple[str, ...] = ()) -> Conversation:
    return Conversation(index, prompt, answer, answer, images)


def found(rows: list[Conversation]) -> RepeatFinder:
    finder = RepeatFinder()
    for item in rows:
        finder.add(item)
    return finder


@given(table=tables)
def test_duplicates_and_conflicts_are_those_of_plain_grouping(table: list[tuple[str, list[str], str]]) -> None:
    rows = [talk(n, prompt, answer, tuple(images)) for n, (prompt, images, answer) in enumerate(table)]
    wholes: dict[Any, list[int]] = defaultdict(list)
    questions: dict[Any, list[Conversation]] = defaultdict(list)
    for item in rows:
        wholes[item.prompt, item.images, item.response].append(item.index)
        questions[item.prompt, item.images].append(item)
    twice = [group for group in wholes.values() if len(group) > 1]
    torn = [group for group in questions.values() if len({item.response for item in group}) > 1]
    finder = found(rows)
    duplicates, conflicts = finder.duplicates(), finder.conflicts(lambda row: rows[row].response)
    assert duplicates["groups"] == len(twice)
    assert duplicates["extra_rows"] == sum(len(group) - 1 for group in twice)
    assert [item["rows"] for item in duplicates["examples"]] == [group[:10] for group in twice[:20]]
    assert conflicts["groups"] == len(torn)
    assert conflicts["rows"] == sum(map(len, torn))
    for shown, group in zip(conflicts["examples"], torn, strict=False):
        answers = list(dict.fromkeys(item.response for item in group))
        assert shown["distinct_answers"] == len(answers)
        assert shown["answers"] == answers[:3]


@given(answers=st.lists(texts, max_size=40))
def test_the_label_balance_counts_as_exact_match_compares(answers: list[str]) -> None:
    from ftproject.engine.metrics import normalised_text

    rows = [talk(n, str(n), answer) for n, answer in enumerate(answers)]
    labels = found(rows).label_balance(lambda row: rows[row].response)
    counts = Counter(map(normalised_text, answers))
    assert {item["label"]: item["count"] for item in labels["labels"]} == counts
    assert labels["distinct"] == len(counts)
    top = max(counts.values()) / len(answers) if answers else None
    assert labels["majority_share"] == (None if top is None else pytest.approx(top, abs=1e-4))


def test_free_text_lists_only_the_commonest() -> None:
    rows = [talk(n, str(n), str(n % 300)) for n in range(400)]
    labels = found(rows).label_balance(lambda row: rows[row].response)
    assert (labels["distinct"], labels["complete"], len(labels["labels"])) == (300, False, 10)
    assert labels["labels"][0] == {"label": "0", "count": 2, "share": 0.005}


def test_a_border_moved_between_two_cells_is_another_row() -> None:
    assert text_hash(("ab", "c")) != text_hash(("a", "bc"))
    assert text_hash(("\ud800",)) != text_hash(("\ud801",))


def measured(index: int, text: int, images: tuple[int, ...] = (), *, limit: int = 100, sizes: Any = ()) -> JudgedRow:
    tokens = RowTokens(text, images)
    too_long = tokens.total > limit
    return JudgedRow(talk(index), "too long" if too_long else None, tokens=tokens, too_long=too_long, sizes=sizes)


def tally_of(rows: list[JudgedRow]) -> LengthTally:
    tally = LengthTally()
    for item in rows:
        tally.add(item)
    return tally


@given(lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=200))
def test_the_distribution_is_numpys(lengths: list[int]) -> None:
    report = tally_of([measured(n, length) for n, length in enumerate(lengths)]).distribution()
    assert (report["min"], report["max"]) == (min(lengths), max(lengths))
    assert report["median"] == sorted(lengths)[(len(lengths) - 1) // 2]
    assert report["p99"] == np.percentile(lengths, 99, method="inverted_cdf")
    assert sum(item["rows"] for item in report["histogram"]) == len(lengths)
    assert report["total"] == sum(lengths)


def test_rows_over_the_limit_are_named_and_the_first_remedy_fits_all_of_them() -> None:
    report = tally_of([measured(n, 90 + n) for n in range(300)]).too_long_report(100, VISION, 4096)
    assert report["count"] == 289
    assert report["rows"] == list(range(11, 111))
    assert report["remedies"]["raise_max_seq_length"] == {
        "max_seq_length": 389,
        "rescues": 289,
        "possible": True,
        "model_limit": 4096,
    }
    assert report["remedies"]["lower_max_pixels"] is None
    assert report["remedies"]["drop_rows"] == {"rows": 289, "rows_left": 11}


def test_a_length_beyond_the_model_is_no_remedy() -> None:
    report = tally_of([measured(0, 5000)]).too_long_report(100, VISION, 4096)
    assert report["remedies"]["raise_max_seq_length"]["possible"] is False


@given(
    rows=st.lists(
        st.tuples(
            st.integers(1, 140),
            st.lists(st.tuples(st.integers(20, 900), st.integers(20, 900)), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_fewer_pixels_rescue_as_many_rows_as_they_say(rows: list[tuple[int, list[tuple[int, int]]]]) -> None:
    judged = []
    for index, (text, sizes) in enumerate(rows):
        images = tuple(VISION.tokens(*size) for size in sizes)
        judged.append(measured(index, text, images, sizes=tuple(sizes)))
    remedies = tally_of(judged).too_long_report(100, VISION, None)["remedies"]
    remedy = remedies and remedies["lower_max_pixels"]

    def fitting(max_pixels: int) -> int:
        rule = VISION.limited(max_pixels)
        long = [item for item in judged if item.too_long]
        return sum(item.tokens.text + sum(rule.tokens(*s) for s in item.sizes) <= 100 for item in long if item.tokens)

    if remedy:
        assert remedy["rescues"] == fitting(remedy["max_pixels"]) == fitting(1024)
        assert all(option["rescues"] == fitting(option["max_pixels"]) for option in remedy["options"])
    else:
        assert fitting(1024) == 0


def test_rows_that_cannot_be_counted_are_not_part_of_the_distribution() -> None:
    tally = tally_of([JudgedRow(talk(0), not_fetched=1), JudgedRow(talk(1), not_fetched=2)])
    report = tally.distribution()
    assert (report["counted"], report["not_counted"], report["median"]) == (0, 2, None)
    assert tally.too_long_report(100, None, None)["remedies"] is None


def test_a_table_with_a_reason_for_every_row_keeps_a_bounded_list() -> None:
    tally = PreflightTally()
    for index in range(REASONS_KEPT + 50):
        tally.add(JudgedRow(talk(index), f"reason {index}", in_split=False))
    report = tally.rows_report()
    assert report["skipped"] == REASONS_KEPT + 50
    assert report["reasons"][0] == {"reason": OTHER_REASONS, "count": 50, "rows": list(range(100, 110))}
    assert len(report["reasons"]) == REASONS_KEPT + 1


def plan_of(
    config: TrainingConfig, model_path: str = str(TINY_MODEL_PATH), memory: int | None = None
) -> PlannedTraining:
    return PlannedTraining(EffectiveConfig(config, model_path, "transformers", []), "cpu", False, memory)


@pytest.mark.parametrize(
    ("sft", "rows", "steps"),
    [
        ({"max_steps": 7}, 100, 7),
        ({"use_epochs": True, "num_train_epochs": 2.0}, 100, 26),
        ({"use_epochs": True, "num_train_epochs": 0.5}, 100, 7),
        ({"use_epochs": True}, 1, 1),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(sft: dict[str, Any], rows: int, steps: int) -> None:
    base = TrainingConfig()
    assert planned_steps(replace(base, sft=replace(base.sft, **sft)), rows) == steps


def test_time_comes_from_a_measured_run_or_is_unknown_with_the_reason() -> None:
    lengths = tally_of([measured(n, 50) for n in range(10)])
    plan = plan_of(TrainingConfig())
    unknown = time_report(plan, lengths, 10, None)
    assert unknown["seconds"] is None
    assert "no completed run of tiny-qwen3-vl on cpu" in unknown["how"]
    known = time_report(plan, lengths, 10, MeasuredSpeed(600.0, 3, 700))
    assert known["tokens"] == 30 * 8 * 50
    assert known["seconds"] == 20.0
    assert "training run 3" in known["how"]


def test_a_device_too_small_is_told() -> None:
    lengths = tally_of([measured(0, 50)])
    report = memory_report(plan_of(TrainingConfig(), memory=100), lengths, MeasuredSpeed(1.0, 3, 700))
    assert report["fits"] is False
    assert report["total_mb"] == pytest.approx(sum(term["mb"] for term in report["terms"]), abs=1)
    assert report["measured"] == {"run_id": 3, "peak_mb": 700}


def test_memory_of_a_model_that_is_not_here_is_unknown_with_the_reason() -> None:
    lengths = tally_of([measured(0, 50)])
    report = memory_report(plan_of(TrainingConfig(), "unsloth/Qwen3-VL-8B-Instruct"), lengths, None)
    assert report["total_mb"] is None
    assert "not on this disk" in report["how"]
