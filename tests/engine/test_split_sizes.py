"""The streaming split has the sizes of the real one, for any rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftproject.engine.conversations import Conversation
from ftproject.engine.hyperparameters import TrainingOptions
from ftproject.engine.split_sizes import SplitCounter
from ftproject.engine.splits import split_conversations

rows = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d", "\ud800"]),
        st.lists(st.integers(0, 12).map(str), max_size=3),
        st.booleans(),
        st.sampled_from(["yes", "Yes ", "no", "maybe"]),
    ),
    max_size=40,
)


def conversation(index: int, prompt: str, images: list[str], answer: str = "x") -> Conversation:
    return Conversation(index, prompt, answer, answer, tuple(images))


@given(
    rows=rows,
    fraction=st.one_of(st.floats(0, 0.99), st.sampled_from([0.0, 0.001, 0.99])),
    seed=st.integers(0, 5),
    stratify=st.booleans(),
)
def test_both_sides_have_the_sizes_of_the_split_of_training(
    rows: list[tuple[str, list[str], bool, str]], fraction: float, seed: int, stratify: bool
) -> None:
    counter = SplitCounter()
    conversations = [
        conversation(index, prompt, images, answer) for index, (prompt, images, _, answer) in enumerate(rows)
    ]
    flags = [trainable for _, _, trainable, _ in rows]
    for item, trainable in zip(conversations, flags, strict=True):
        counter.add(item, trainable=trainable)
    held = split_conversations(conversations, TrainingOptions(fraction, seed, stratify))
    trained = sum(flag and not out for flag, out in zip(flags, held, strict=True))
    heldout = sum(flag and out for flag, out in zip(flags, held, strict=True))
    assert counter.sizes(fraction, seed, stratify=stratify) == (trained, heldout)


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
    assert grown < 20_000 * 55
