"""Counts the rows of both sides of a split while rows stream by, in 41 bytes a row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from ftproject.engine.conversations import Conversation
from ftproject.engine.splits import (
    answer_digest,
    check_fraction,
    group_place,
    row_group_key,
    stratified_split,
    text_digest,
)

DIGEST_BYTES = 32


class SplitCounter:
    """The sizes of the split that `splits.row_group_keys` and `splits.holdout_split` make of the same rows.

    It keeps the hashes of each row's group and answer and, for rows with several images, which images belong
    together; never a row. Equal to those two on generated tables (tests).
    """

    def __init__(self) -> None:
        self._digests = bytearray()
        self._flags = bytearray()
        self._answers = array("Q")
        self._parents: dict[bytes, bytes] = {}

    def add(self, conversation: Conversation, *, trainable: bool) -> None:
        """Adds the next row that takes part in the split; only a trainable one is counted in its side."""
        if conversation.images:
            digests = [bytes.fromhex(text_digest(image)) for image in conversation.images]
            self._link(digests)
            self._digests += digests[0]
        else:
            self._digests += bytes.fromhex(row_group_key(conversation))
        self._flags.append(trainable | bool(conversation.images) << 1)
        self._answers.append(answer_digest(conversation))

    def sizes(self, fraction: float, seed: int, *, stratify: bool = False) -> tuple[int, int]:
        """Trainable rows in training and held out; raises ValueError outside 0 <= fraction < 1."""
        check_fraction(fraction)
        trainable = sum(flag & 1 for flag in self._flags)
        if fraction == 0:
            return trainable, 0
        held = self._held_out(fraction, seed, stratify=stratify)
        held_count = sum(1 for flag, out in zip(self._flags, held, strict=True) if out and flag & 1)
        return trainable - held_count, held_count

    def _held_out(self, fraction: float, seed: int, *, stratify: bool) -> list[bool]:
        # Equal places are equal groups: two hashes that share 53 bits would need some 10^8 groups to meet.
        places = array("d", (group_place(key, seed) for key in self._keys()))
        if stratify:
            return stratified_split(places, self._answers, fraction)
        held = [place < fraction for place in places]
        if held and not any(held) and max(places) > min(places):
            smallest = min(places)
            held = [place == smallest for place in places]
        if held and all(held):
            largest = max(places)
            held = [place != largest for place in places]
        return held

    def _keys(self) -> Iterator[str]:
        """The keys of `splits.row_group_keys`, one at a time: a list of them would take 113 bytes a row."""
        for index, flag in enumerate(self._flags):
            digest = bytes(self._digests[DIGEST_BYTES * index : DIGEST_BYTES * (index + 1)])
            yield text_digest(root_of(self._parents, digest).hex()) if flag & 2 else digest.hex()

    def _link(self, digests: Sequence[bytes]) -> None:
        first = digests[0]
        for other in digests[1:]:
            low, high = sorted((root_of(self._parents, first), root_of(self._parents, other)))
            if low != high:
                self._parents[high] = low


def root_of(parents: dict[bytes, bytes], key: bytes) -> bytes:
    """The smallest image of the group, the path to it shortened on the way."""
    while (parent := parents.get(key, key)) != key:
        parents[key] = parents.get(parent, parent)
        key = parent
    return key
