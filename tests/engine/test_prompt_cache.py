"""Encoded prompts are kept within a bound, and what fails is not kept."""

import pytest

from ftproject.engine.backends.base import RowError
from ftproject.engine.encoding import EncodedRow
from ftproject.engine.prompt_cache import PromptCache


def encoded(tokens: int) -> EncodedRow:
    return EncodedRow(0, [1] * tokens, [-100] * tokens, ())


def test_a_row_is_encoded_once_under_its_key() -> None:
    cache, calls = PromptCache(), []

    def encode() -> EncodedRow:
        calls.append(1)
        return encoded(3)

    assert cache.get(("rule", "row"), encode) is cache.get(("rule", "row"), encode)
    assert len(calls) == 1
    cache.get(("another rule", "row"), encode)
    assert len(calls) == 2


def test_the_least_recently_used_rows_are_dropped_beyond_the_bound() -> None:
    cache = PromptCache(max_tokens=10)
    for key in ("a", "b"):
        cache.get(key, lambda: encoded(5))
    cache.get("a", lambda: pytest.fail("a was kept"))
    cache.get("c", lambda: encoded(5))
    again: list[str] = []
    for key in ("a", "c", "b"):
        cache.get(key, lambda key=key: again.append(key) or encoded(1))  # type: ignore[func-returns-value,misc]
    assert again == ["b"]


def test_a_row_beyond_the_bound_is_given_and_not_kept() -> None:
    cache = PromptCache(max_tokens=10)
    assert len(cache.get("long", lambda: encoded(11))) == 11
    calls: list[int] = []
    cache.get("long", lambda: calls.append(1) or encoded(11))  # type: ignore[func-returns-value]
    assert calls == [1]


def test_a_failure_is_raised_each_time() -> None:
    cache = PromptCache()

    def fail() -> EncodedRow:
        raise RowError("image_count", "1 image places for 0 image files")

    for _ in range(2):
        with pytest.raises(RowError):
            cache.get("row", fail)
    assert len(cache.get("row", lambda: encoded(2))) == 2
