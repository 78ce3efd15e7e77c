"""The streaming split has the sizes of the real one, for any rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine.conversations import Conversation
from ftproject.engine.split_sizes import SplitCounter
from ftproject.engine.splits import holdout_split, row_group_keys

rows = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d", "\ud800"]),
        st.lists(st.integers(0, 12).map(str), max_size=3),
        st.booleans(),
    ),
    max_size=40,
)


def conversation(index: int, prompt: str, images: list[str]) -> Conversation:
    return Conversation(index, prompt, "x", "x", tuple(images))


@given(rows=rows, fraction=st.one_of(st.floats(0, 0.99), st.sampled_from([0.0, 0.001, 0.99])), seed=st.integers(0, 5))
def test_both_sides_have_the_sizes_of_the_split_of_training(
    rows: list[tuple[str, list[str], bool]], fraction: float, seed: int
) -> None:
    counter = SplitCounter()
    conversations = [conversation(index, prompt, images) for index, (prompt, images, _) in enumerate(rows)]
    for item, (_, _, trainable) in zip(conversations, rows, strict=True):
        counter.add(item, trainable=trainable)
    held = holdout_split(row_group_keys(conversations), fraction, seed)
    flags = [trainable for _, _, trainable in rows]
    trained = sum(flag and not out for flag, out in zip(flags, held, strict=True))
    heldout = sum(flag and out for flag, out in zip(flags, held, strict=True))
    assert counter.sizes(fraction, seed) == (trained, heldout)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        SplitCounter().sizes(fraction, 0)


def test_it_keeps_hashes_and_no_rows() -> None:
    import tracemalloc

    counter = SplitCounter()
    tracemalloc.start()
    for index in range(20_000):
        counter.add(conversation(index, f"{index} {'x' * 500}", []), trainable=True)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 20_000 * 45
