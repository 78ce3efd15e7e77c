"""Rows come a window at a time: bounded, in order, without those that have a sample."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from datasets_app.models import Dataset
from evaluation_app import windows
from evaluation_app.models import EvaluationRun, Sample
from evaluation_app.row_ranges import RowRanges
from evaluation_app.windows import MissingRows, iter_ground_truths, iter_windows
from ftproject.engine.splits import decode_ranges, encode_ranges

MakeDataset = Callable[..., Dataset]


def make_run(dataset: Dataset, **fields: Any) -> EvaluationRun:
    return EvaluationRun.objects.create(
        dataset=dataset, mapping=dataset.mappings.get(), model_name="tiny", model_type="base", **fields
    )


def answered(run: EvaluationRun, *numbers: int) -> None:
    Sample.objects.bulk_create(Sample(run=run, index=number, prompt="p", ground_truth="t") for number in numbers)


def walk(run: EvaluationRun, scope: Any, should_stop: Callable[[], bool] = lambda: False) -> list[list[int]]:
    found = iter_windows(run, scope, should_stop=should_stop, lost=Counter(), on_row=lambda _: None)
    return [[row.index for row in window] for window in found]


@pytest.mark.django_db
def test_windows_hold_the_rows_in_order_the_first_one_fewer(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "FIRST_WINDOW_ROWS", 2)
    monkeypatch.setattr(windows, "WINDOW_ROWS", 4)
    run = make_run(make_dataset([(f"p{n}", "a", "n") for n in range(11)]))
    assert walk(run, range(11)) == [[0, 1], [2, 3, 4, 5], [6, 7, 8, 9], [10]]
    assert walk(run, range(3)) == [[0, 1], [2]]
    assert walk(run, range(0)) == []


@pytest.mark.django_db
def test_long_rows_close_a_window_early(make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_CHARS", 100)
    run = make_run(make_dataset([("p" * 60, "a", "n") for _ in range(5)]))
    assert walk(run, range(5)) == [[0, 1], [2, 3], [4]]


@pytest.mark.django_db
def test_a_window_keeps_no_cells_and_reads_no_unmapped_column(make_dataset: MakeDataset) -> None:
    run = make_run(make_dataset([("p", "a", "secret" * 1000)]))
    ((row,),) = iter_windows(run, range(1), should_stop=lambda: False, lost=Counter(), on_row=lambda _: None)
    assert row.row is None
    assert "secret" not in repr(row)


@pytest.mark.django_db
def test_rows_with_a_sample_are_passed_over_block_by_block(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(windows, "STORED_BLOCK", 4)
    run = make_run(make_dataset([(f"p{n}", "a", "n") for n in range(10)]))
    answered(run, 0, 3, 4, 9)
    assert walk(run, range(10)) == [[1, 2, 5, 6, 7, 8]]
    missing = MissingRows(run, range(10))
    with django_assert_num_queries(3):
        assert [number for number in range(12) if number in missing] == [1, 2, 5, 6, 7, 8]


@pytest.mark.django_db
def test_a_new_run_asks_the_database_for_no_row(make_dataset: MakeDataset, django_assert_num_queries: Any) -> None:
    missing = MissingRows(make_run(make_dataset([("p", "a", "n")])), range(5))
    with django_assert_num_queries(0):
        assert [number for number in range(7) if number in missing] == [0, 1, 2, 3, 4]


@pytest.mark.django_db
def test_a_stop_ends_the_windows(make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "FIRST_WINDOW_ROWS", 2)
    run = make_run(make_dataset([(f"p{n}", "a", "n") for n in range(9)]))
    asked = iter([False] * 3 + [True] * 99)
    assert walk(run, range(9), lambda: next(asked)) == [[0, 1]]


@pytest.mark.django_db
def test_the_ground_truths_are_those_of_the_scope(make_dataset: MakeDataset) -> None:
    run = make_run(make_dataset([("p", f"a{n}", "n") for n in range(6)]))
    assert list(iter_ground_truths(run, range(2))) == ["a0", "a1"]
    assert list(iter_ground_truths(run, RowRanges("1,3-4"))) == ["a1", "a3", "a4"]
    assert list(iter_ground_truths(run, range(0))) == []


@pytest.mark.parametrize("numbers", [[], [0], [3], [0, 1, 2], [0, 2, 3, 4, 9, 10], list(range(5, 500, 7))], ids=str)
@pytest.mark.parametrize("limit", [None, 0, 1, 3, 1000])
def test_ranges_are_a_sequence_of_what_was_encoded(numbers: list[int], limit: int | None) -> None:
    text = encode_ranges(numbers)
    ranges, expected = RowRanges(text, limit), decode_ranges(text)[:limit]
    assert list(ranges) == expected
    assert len(ranges) == len(expected)
    assert [number for number in range(502) if number in ranges] == expected
    assert [ranges[place] for place in range(len(expected))] == expected
    assert list(ranges[1:-1]) == expected[1:-1]
    if expected:
        assert (ranges[-1], bool(ranges)) == (expected[-1], True)
    else:
        assert not ranges


def test_a_place_that_is_not_there_is_an_error() -> None:
    with pytest.raises(IndexError):
        RowRanges("0-4")[5]
    with pytest.raises(IndexError):
        RowRanges("")[-1]
