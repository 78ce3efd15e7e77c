"""Text that PostgreSQL cannot store: NUL in columns, in JSON and in lookups, halves of surrogate pairs in JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.core.models import Event
from ftproject.core.postgres import storable_json
from tests.core.jobs import make_training
from training_app.models import TrainingRun


def test_a_nul_in_a_text_column_becomes_the_replacement_character(postgres: None) -> None:
    run = make_training(message="a\x00b", warnings=["c\x00d"], error="\x00")
    run.refresh_from_db()
    assert (run.message, run.warnings, run.error) == ("a\ufffdb", ["c\ufffdd"], "\ufffd")


def test_a_lookup_with_a_nul_finds_nothing_and_does_not_fail(postgres: None) -> None:
    assert not TrainingRun.objects.filter(message__icontains="\x00").exists()
    assert not Event.objects.filter(data__message="\x00").exists()


def test_bulk_rows_are_stored_as_single_ones(postgres: None) -> None:
    Event.objects.bulk_create([Event(type="x\x00", data={"a\x00": ["\x00"]})])
    assert Event.objects.values_list("type", "data").get() == ("x\ufffd", {"a\ufffd": ["\ufffd"]})


def test_half_of_a_surrogate_pair_in_json_is_replaced(postgres: None) -> None:
    event = Event.objects.create(type="x", data={"text": "\ud800 and \U0001f600", "plain": "\\ud800"})
    event.refresh_from_db()
    assert event.data == {"text": "\ufffd and \U0001f600", "plain": "\\ud800"}


@pytest.mark.parametrize("written", ["\\u0000", "\\\\u0000", '\\"\\u0000', "\\ud83d\\ude00", "\\ud83d", "\\ude00x"])
def test_json_stays_json_and_keeps_its_escaped_backslashes(written: str) -> None:
    stored = json.loads(storable_json(f'"{written}"'.encode()))
    before = json.loads(f'"{written}"')
    assert "\x00" not in stored
    assert stored == before.replace("\x00", "\ufffd") or "\ufffd" in stored
    stored.encode()


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8", exclude_characters="\x00")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)


@given(values)
def test_json_without_such_characters_is_untouched(value: Any) -> None:
    stored = json.loads(storable_json(json.dumps(value).encode()))
    if "\\u0000" not in json.dumps(value):
        assert stored == value
