"""Fields of structured answers: paths, types, broken JSON, and memory when every row has other keys."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine.metrics import InvalidJsonError, Normalization, compare_fields, parse_json
from ftproject.engine.metrics.base import Score, TextPair
from ftproject.engine.metrics.json_fields import MOST_LISTED_FIELDS, JsonFields, leaves

INVOICE = {"shop": {"name": "Aldi", "vat": None}, "total": 12.5, "items": [{"id": 1}, {"id": 2}], "paid": True}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.text(max_size=3), json_values, max_size=4) | st.lists(json_values, max_size=3)


def score(prediction: Any, truth: Any, metric: JsonFields | None = None) -> Score:
    one, other = (value if isinstance(value, str) else json.dumps(value) for value in (prediction, truth))
    return (metric or JsonFields()).score(TextPair(one, other, Normalization().comparable))


def leaves_by_recursion(value: Any, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    """The same leaves under tuples: no two paths can be written alike there."""
    if isinstance(value, dict) and value:
        return {key: leaf for name in value for key, leaf in leaves_by_recursion(value[name], (*path, name)).items()}
    if isinstance(value, list) and value:
        return {
            key: leaf for n, item in enumerate(value) for key, leaf in leaves_by_recursion(item, (*path, n)).items()
        }
    return {path: value} if path else {}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return Normalization().comparable(one) == Normalization().comparable(other)
    return type(one) is type(other) and one == other


@given(documents, documents)
def test_fields_are_those_of_a_plain_recursion(prediction: Any, truth: Any) -> None:
    expected, predicted = leaves_by_recursion(truth), leaves_by_recursion(prediction)
    right = [path in predicted and same(predicted[path], value) for path, value in expected.items()]
    found = compare_fields(prediction, truth, comparable=Normalization().comparable)
    assert list(found.values()) == right
    assert len(leaves(truth)) == len(expected)


@given(documents)
def test_a_document_equals_itself_however_it_is_laid_out(document: Any) -> None:
    result = score(json.dumps(document, indent=3, sort_keys=True), document)
    assert result.value in (1.0, None)
    assert (result.value is None) == (not leaves(document))


def test_every_leaf_counts_on_its_own() -> None:
    result = score({**INVOICE, "total": 12, "items": [{"id": 1}]}, INVOICE)
    assert result.value == pytest.approx(4 / 6)
    assert result.details["fields"] == {
        "shop.name": True,
        "shop.vat": True,
        "total": False,
        "items[0].id": True,
        "items[1].id": False,
        "paid": True,
    }


@pytest.mark.parametrize(
    ("prediction", "truth", "right"),
    [
        (1.0, 1, True),
        (0.1, 0.10, True),
        ("12", 12, False),
        (True, 1, False),
        (False, 0, False),
        (None, "", False),
        (" a  b", "a b", True),
        ("A", "a", False),
        ([], {}, False),
        ([], [], True),
        ({}, None, False),
    ],
)
def test_values_are_equal_by_type_numbers_by_value(prediction: Any, truth: Any, right: bool) -> None:
    assert score({"a": prediction}, {"a": truth}).details["fields"]["a"] is right


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        '"text"',
        "null",
        "{",
        '{"a": NaN}',
        '{"a": -Infinity}',
        "{'a': 1}",
        'Sure: {"a": 1}',
        "[" * 100_000,
        '{"a": ' + "1" * 5000 + "}",
        '{"a": 1e99999999999999999999}',
        '{"a": 1} {"b": 2}',
    ],
)
def test_what_is_no_json_document_is_refused(text: str) -> None:
    with pytest.raises(InvalidJsonError):
        parse_json(text)


def test_a_deep_document_is_compared_without_recursion() -> None:
    document: Any = 1
    for _ in range(900):
        document = [document]
    assert score(document, document).value == 1.0


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "```\n{}```", "  ```JSON \n{}\n ``` \n"])
def test_one_code_fence_around_the_document_is_no_mistake(fence: str) -> None:
    assert score(fence.replace("{}", '{"a": 1}'), {"a": 1}).value == 1.0


def test_an_answer_that_is_no_json_has_every_field_wrong() -> None:
    result = score("no idea", {"a": None, "b": 1})
    assert result.value == 0.0
    assert result.details["fields"] == {"a": False, "b": False}
    assert result.details["invalid_json"] is True


@pytest.mark.parametrize("truth", ["no json", "12", "{}", "[]"])
def test_a_ground_truth_without_fields_judges_nothing(truth: str) -> None:
    assert score({"a": 1}, truth).value is None


def test_only_the_named_fields_count_with_all_below_them() -> None:
    metric = JsonFields(fields=("shop", "items[1]"))
    result = score({**INVOICE, "total": 0, "shop": {"name": "Lidl", "vat": None}}, INVOICE, metric)
    assert result.details["fields"] == {"shop.name": False, "shop.vat": True, "items[1].id": True}
    assert score(INVOICE, INVOICE, JsonFields(fields=("absent",))).value is None


def test_keys_that_look_like_paths_stay_apart() -> None:
    assert leaves({"a.b": 1, "a": {"b": 2}, "c d": 3, "": 4, "e[0]": 5}) == {
        '["a.b"]': 1,
        "a.b": 2,
        '["c d"]': 3,
        '[""]': 4,
        '["e[0]"]': 5,
    }


def test_no_key_can_break_the_database() -> None:
    result = score('{"\\u0000": 1, "\\ud800": 2}', '{"\\u0000": 1, "\\ud800": 2}')
    assert result.value == 1.0
    stored = json.dumps(result.details)
    assert "\\u0000" in json.loads(stored)["fields"].popitem()[0] or "\\ud800" in stored
    assert all(key.isascii() and key.isprintable() for key in result.details["fields"])


def test_fields_more_than_expected_are_counted_not_judged() -> None:
    result = score({"a": 1, "b": 2, "c": [1, 2]}, {"a": 1})
    assert (result.value, result.details["unexpected_fields"]) == (1.0, 3)


def test_texts_are_compared_by_the_normalisation_of_the_run() -> None:
    pair = TextPair('{"a": "Red."}', '{"a": "red"}', Normalization(casefold=True, strip_punctuation=True).comparable)
    assert JsonFields().score(pair).value == 1.0


def test_a_run_reports_each_field_and_counts_rows_by_their_fields() -> None:
    totals = JsonFields().totals()
    for prediction, truth in [({"a": 1, "b": 1}, {"a": 1, "b": 2}), ({"a": 2}, {"a": 2}), ("?", {"a": 1}), ("{}", "?")]:
        result = score(prediction, truth)
        totals.add(result.value, result.details)
    assert totals.value() == pytest.approx(2 / 4)
    assert totals.details() == {
        "undefined": 1,
        "invalid_json": 1,
        "ground_truth_invalid_json": 1,
        "unexpected_fields": 0,
        "rows_all_right": pytest.approx(1 / 3),
        "fields": {"a": {"accuracy": pytest.approx(2 / 3), "count": 3}, "b": {"accuracy": 0.0, "count": 1}},
        "values_of_unlisted_fields": 0,
    }


def test_keys_that_differ_from_row_to_row_do_not_fill_the_memory() -> None:
    totals = JsonFields().totals()
    for number in range(MOST_LISTED_FIELDS + 50):
        result = score({f"k{number}": 1}, {f"k{number}": 1})
        totals.add(result.value, result.details)
    details = totals.details()
    assert len(details["fields"]) == MOST_LISTED_FIELDS
    assert details["values_of_unlisted_fields"] == 50
    assert totals.value() == 1.0
