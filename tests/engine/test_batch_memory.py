"""How many tokens fit: from the model's shape and what is free, never none."""

from types import SimpleNamespace
from typing import Any

import pytest

from ftproject.engine.batch_memory import LARGEST_BATCH_TOKENS, bytes_per_token, free_memory_bytes, tokens_that_fit


def config(**changed: Any) -> Any:
    shape = {
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "num_attention_heads": 32,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
    }
    text = SimpleNamespace(**{**shape, **changed})
    return SimpleNamespace(get_text_config=lambda: text)


def test_a_token_of_the_8b_model_takes_what_its_shape_says() -> None:
    """Keys and values: 2 x 36 layers x 8 heads x 128; activations: 6 x 4096 + 3 x 12288; two bytes each."""
    assert bytes_per_token(config(), 2) == (73_728 + 24_576 + 36_864) * 2


def test_a_head_size_that_is_not_given_follows_from_the_heads() -> None:
    assert bytes_per_token(config(head_dim=None), 2) == bytes_per_token(config(), 2)


def test_twice_the_memory_or_half_the_precision_holds_twice_the_tokens() -> None:
    once = tokens_that_fit(config(), free_bytes=8 * 2**30, element_size=2, on_cpu=False)
    assert tokens_that_fit(config(), free_bytes=16 * 2**30, element_size=2, on_cpu=False) == pytest.approx(
        2 * once, abs=2
    )
    assert tokens_that_fit(config(), free_bytes=8 * 2**30, element_size=4, on_cpu=False) == once // 2
    assert tokens_that_fit(config(), free_bytes=8 * 2**30, element_size=2, on_cpu=True) < once


@pytest.mark.parametrize(("free", "expected"), [(0, 1), (1, 1), (2**60, LARGEST_BATCH_TOKENS)])
def test_there_is_always_one_and_never_without_end(free: int, expected: int) -> None:
    assert tokens_that_fit(config(), free_bytes=free, element_size=2, on_cpu=False) == expected


def test_the_memory_of_this_machine_is_known() -> None:
    assert free_memory_bytes("cpu") > 2**20
